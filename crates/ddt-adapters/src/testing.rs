//! Helpers of the unit tests.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Shape, Tensor};
use ddt_files::{FileError, TensorInfo, TensorSource};

/// Uniform numbers in [-1, 1), a pure function of the seed (splitmix64).
pub(crate) fn random(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let values: Vec<f32> = (0..shape.elem_count())
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Root mean square of the difference over that of `want`.
pub(crate) fn rel_rms(got: &Tensor, want: &Tensor) -> f64 {
    ddt_parity::relative_rms(got, want).unwrap()
}

/// Tensors in memory, as if from a file.
pub(crate) struct InMemory(pub(crate) BTreeMap<String, Tensor>);

impl TensorSource for InMemory {
    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.0.get(name)?;
        Some(TensorInfo { dtype: tensor.dtype(), shape: tensor.dims().to_vec() })
    }

    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        let not_found = || FileError::not_found(self.path(), name);
        Ok(self.0.get(name).ok_or_else(not_found)?.to_device(device).unwrap())
    }
}
