//! The interface of a device: a GPU's driver, or the CPU in its place.

use std::fmt::Debug;

use super::error::Result;
use super::launch::Launch;
use super::shapes::{ConvShape, GemmPlaces, GemmShape};

/// A device with one stream. Addresses and shapes have been checked by the caller.
pub(super) trait Backend: Debug + Send + Sync {
    fn name(&self) -> &str;

    /// Streaming multiprocessors.
    fn multiprocessors(&self) -> usize;

    /// Whether the CPU plays the device.
    fn is_emulated(&self) -> bool;

    /// The version of cuDNN, if it is there.
    fn cudnn_version(&self) -> Option<usize> {
        None
    }

    /// Bytes of memory: free, and in all.
    fn memory(&self) -> Result<(usize, usize)>;

    fn alloc(&self, bytes: usize) -> Result<u64>;

    fn free(&self, address: u64);

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    fn wait(&self) -> Result<()>;

    /// Milliseconds of what `work` puts on the stream.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Records what `work` puts on the stream.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;

    fn gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()>;

    /// Finds the fastest algorithm for this GEMM, and runs it.
    fn tune_gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        self.gemm(shape, places)
    }

    /// Convolves with a library, if there is one that knows the shape, and returns whether it did. `places` are the
    /// addresses of input, weight and result.
    fn conv(&self, _shape: ConvShape, _places: [u64; 3], _scratch: u64) -> Result<bool> {
        Ok(false)
    }
}

/// Work that was recorded, to be started as one.
pub(super) trait Recording {
    fn launch(&self) -> Result<()>;
}
