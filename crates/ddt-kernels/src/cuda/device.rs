//! An open device, and graphs of recorded kernels.

use std::sync::Arc;

use super::backend::Recording;
use super::error::{Result, expect};
use super::launch::{Arguments, Launch, blocks};
use super::memory::{Device, Element, RECORDED_NOW, Slice, bytes_of, bytes_of_mut};

/// An open device: its context, one stream, and every kernel.
///
/// Work is put on the one stream in the order of the calls.
/// Cloning is cheap and shares the device.
#[derive(Debug, Clone)]
pub struct Cuda {
    pub(crate) device: Arc<Device>,
}

impl Cuda {
    /// The name of the device.
    pub fn name(&self) -> &str {
        self.device.backend.name()
    }

    /// The version of cuDNN, such as 91300 for 9.13.0; `None` where [`Cuda::conv`] does without it.
    pub fn cudnn_version(&self) -> Option<usize> {
        self.device.backend.cudnn_version()
    }

    /// Whether the CPU plays the device.
    pub fn is_emulated(&self) -> bool {
        self.device.backend.is_emulated()
    }

    /// The known ways of multiplying matrices on this device, a line each, for other processes.
    ///
    /// # Errors
    /// If the library that multiplies is not there.
    pub fn ways(&self) -> Result<String> {
        self.device.backend.ways()
    }

    /// Multiplies in the [`ways`](Self::ways) of another process with the same kind of GPU, and gives the same bits. Shapes that
    /// they lack are not measured: the library chooses.
    ///
    /// # Errors
    /// If the library that multiplies is not there.
    pub fn set_ways(&self, ways: &str) -> Result<()> {
        self.device.backend.set_ways(ways)
    }

    /// Streaming multiprocessors: how many blocks run side by side.
    pub fn multiprocessors(&self) -> usize {
        self.device.backend.multiprocessors()
    }

    /// Bytes of device memory: free, and in all.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.device.backend.memory()
    }

    /// Memory for `len` elements, with whatever it held, at a multiple of 256 bytes. Not while capturing.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](super::CudaError::OutOfMemory) if that much is not free; if the driver
    /// refuses.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Slice<T>> {
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(Slice::whole(self.device.alloc(bytes)?))
    }

    /// Memory that holds `values`. Not while capturing.
    ///
    /// # Errors
    /// As [`Self::alloc`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Slice<T>> {
        let slice = self.alloc(values.len())?;
        self.write(&slice, values)?;
        Ok(slice)
    }

    /// Copies `values` to `slice`, behind what is on the stream, and waits. Not while capturing.
    ///
    /// # Errors
    /// If lengths differ, or if the driver refuses.
    pub fn write<T: Element>(&self, slice: &Slice<T>, values: &[T]) -> Result<()> {
        self.check("write", slice, values.len())?;
        self.device.backend.write(slice.address(), bytes_of(values))
    }

    /// The values of `slice`, behind what is on the stream. Not while capturing.
    ///
    /// # Errors
    /// If the driver refuses, or if a kernel before it failed.
    pub fn read<T: Element>(&self, slice: &Slice<T>) -> Result<Vec<T>> {
        let mut values = vec![T::ZERO; slice.len()];
        self.check("read", slice, values.len())?;
        self.device.backend.read(slice.address(), bytes_of_mut(&mut values))?;
        Ok(values)
    }

    /// Puts a copy of `from` to `to` on the stream; the two may not overlap.
    ///
    /// # Errors
    /// If lengths differ, or if the driver refuses.
    pub fn copy<T: Element>(&self, from: &Slice<T>, to: &Slice<T>) -> Result<()> {
        self.check("copy", from, to.len())?;
        self.check("copy", to, from.len())?;
        let bytes = from.len() * size_of::<T>();
        self.device.backend.copy(from.address(), to.address(), bytes)
    }

    /// Waits until everything on the stream is done. Not while capturing.
    ///
    /// # Errors
    /// If a kernel failed.
    pub fn wait(&self) -> Result<()> {
        self.device.backend.wait()
    }

    /// Milliseconds that the device spent on what `work` puts on the stream. Not while capturing.
    ///
    /// # Errors
    /// Those of `work`, or if a kernel failed.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let mut work = Some(work);
        self.device.backend.time(&mut || work.take().map_or(Ok(()), |work| work()))
    }

    pub(super) fn launch(&self, launch: &Launch) -> Result<()> {
        if launch.grid.0 == 0 || launch.grid.1 == 0 || launch.grid.2 == 0 {
            return Ok(());
        }
        self.device.backend.launch(launch)
    }

    /// Starts a kernel that gives each of `count` items a thread.
    pub(super) fn each(
        &self,
        name: &'static str,
        kernel: &'static str,
        count: usize,
        arguments: Arguments,
    ) -> Result<()> {
        /// Threads of a block.
        const BLOCK: u32 = 256;
        let grid = (blocks(name, count, BLOCK as usize)?, 1, 1);
        self.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments })
    }

    fn check<T: Element>(&self, call: &'static str, slice: &Slice<T>, len: usize) -> Result<()> {
        let ours = Arc::ptr_eq(&self.device, slice.device());
        expect(ours, call, "memory of this device", "memory of another")?;
        expect(slice.len() == len, call, format_args!("{len} elements"), slice.len())
    }

    /// Records what `work` puts on the stream, without running it.
    ///
    /// # Errors
    /// Those of `work`, which may not allocate, read, write or wait; or if the driver refuses.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Counted first: memory that `work` drops while it is recorded is part of the recording.
        self.device.graph_begins();
        let mut graph = Graph { recording: None, before: RECORDED_NOW, device: Arc::clone(&self.device) };
        let mut work = Some(work);
        let recording = self.device.backend.capture(&mut || work.take().map_or(Ok(()), |work| work()))?;
        graph.recording = Some(recording);
        graph.before = self.device.graph_is_recorded();
        Ok(graph)
    }
}

/// Kernels that were put on the stream while it was recorded, started as one.
///
/// While it lives, the device frees no memory that is older: what its kernels use stays in place.
pub struct Graph {
    /// Dropped by hand, before the device frees the memory that was kept for it.
    recording: Option<Box<dyn Recording>>,
    /// Allocations of the device before it.
    before: u64,
    device: Arc<Device>,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({:?})", self.device)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.recording = None;
        self.device.graph_is_gone(self.before);
    }
}

impl Graph {
    /// Puts the recorded work on the stream.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        self.recording.as_ref().map_or(Ok(()), |recording| recording.launch())
    }
}
