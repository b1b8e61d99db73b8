//! NVIDIA GPUs as candle's devices.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use candle_core::Device;

use crate::error::{Context, Result};

/// GPU `number` with a stream of its own, the same device at every call.
pub(crate) fn open(number: usize) -> Result<Device> {
    static OPEN: Mutex<Option<HashMap<usize, Device>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(match open.get_or_insert_default().entry(number) {
        Entry::Occupied(found) => found.get().clone(),
        Entry::Vacant(place) => {
            let opened = Device::new_cuda_with_stream(number).context(format!("the GPU {number}"))?;
            place.insert(opened).clone()
        }
    })
}
