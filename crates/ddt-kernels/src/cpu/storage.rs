//! From candle's storages to slices.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, WithDType, bail};

/// The elements of a contiguous CPU storage.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let elements = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets().and_then(|(start, end)| elements.get(start..end)) {
        Some(elements) => Ok(elements),
        None => bail!("expected a contiguous tensor, got layout {layout:?}"),
    }
}

/// The elements of a contiguous tensor that lives on the CPU.
pub(crate) fn tensor_slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => slice(storage, layout),
        other => bail!("expected a CPU tensor, got one on {:?}", other.device()),
    }
}

/// The dtype of a storage.
pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    BackendStorage::dtype(storage)
}

/// A storage that takes over `values`.
pub(crate) fn from_vec<T: WithDType>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

/// Runs `$body` with each named tensor replaced by its elements, of type `$t`.
macro_rules! with_slices {
    ($t:ty; $($name:ident),+ => $body:expr) => {{
        $(
            let $name = $name.storage_and_layout();
            let $name = $crate::cpu::storage::tensor_slice::<$t>(&$name.0, $name.1)?;
        )+
        $body
    }};
}
pub(crate) use with_slices;
