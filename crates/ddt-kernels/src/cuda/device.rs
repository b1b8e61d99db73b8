//! An open device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::element::Element;
use super::error::{Result, expect};
use super::launch::Launch;
use super::memory::{Memory, Slice};

/// A device and what it still needs its memory for.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) backend: Backend,
    kept: Mutex<Kept>,
}

/// Graphs hold addresses: while one lives, memory that nobody else holds is freed later.
#[derive(Debug, Default)]
struct Kept {
    graphs: usize,
    addresses: Vec<u64>,
}

/// Where kernels run.
#[derive(Debug)]
pub(super) enum Backend {
    #[cfg(feature = "cuda")]
    Driver(super::driver::Driver),
    #[cfg(feature = "cuda-emulation")]
    Emulated(super::emulation::Emulated),
}

/// Calls the same method of whichever device it is.
macro_rules! on {
    ($device:expr, $with:ident => $call:expr) => {
        match &$device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver($with) => $call,
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated($with) => $call,
        }
    };
}

impl Device {
    pub(super) fn new(backend: Backend) -> Arc<Self> {
        Arc::new(Self { backend, kept: Mutex::default() })
    }

    pub(super) fn free(&self, address: u64) {
        let mut kept = self.kept();
        if kept.graphs > 0 {
            kept.addresses.push(address);
        } else {
            on!(self, device => device.free(address));
        }
    }

    pub(super) fn keep_for_graph(&self) {
        self.kept().graphs += 1;
    }

    pub(super) fn graph_is_gone(&self) {
        let mut kept = self.kept();
        kept.graphs -= 1;
        if kept.graphs == 0 {
            for address in kept.addresses.drain(..) {
                on!(self, device => device.free(address));
            }
        }
    }

    pub(super) fn launch(&self, launch: &Launch) -> Result<()> {
        on!(self, device => device.launch(launch))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open device: its context, one stream, and every kernel.
///
/// Work is put on the one stream in the order of the calls.
/// Cloning is cheap and shares the device.
#[derive(Debug, Clone)]
pub struct Cuda {
    pub(super) device: Arc<Device>,
}

impl Cuda {
    /// Opens device `ordinal`, from 0, and loads the kernels.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`](super::CudaError::NoDriver) where there is none; if there is no such device,
    /// it is older than compute capability 8.0, or the driver refuses.
    #[cfg(feature = "cuda")]
    pub fn open(ordinal: usize) -> Result<Self> {
        Ok(Self { device: Device::new(Backend::Driver(super::driver::Driver::open(ordinal)?)) })
    }

    /// The stream that everything is put on; `None` where the CPU plays the device.
    #[cfg(feature = "cuda")]
    pub fn stream(&self) -> Option<&Arc<cudarc::driver::CudaStream>> {
        match &self.device.backend {
            Backend::Driver(driver) => Some(driver.stream()),
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(_) => None,
        }
    }

    /// What the device calls itself.
    pub fn name(&self) -> &str {
        on!(self.device, device => device.name())
    }

    /// The version of cuDNN, such as 91300 for 9.13.0; `None` where [`Cuda::conv`] does without it.
    pub fn cudnn_version(&self) -> Option<usize> {
        match &self.device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(driver) => driver.cudnn_version(),
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(_) => None,
        }
    }

    /// Whether the CPU plays the device.
    pub fn is_emulated(&self) -> bool {
        match &self.device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(_) => false,
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(_) => true,
        }
    }

    /// Streaming multiprocessors: how many blocks run side by side.
    pub fn multiprocessors(&self) -> usize {
        on!(self.device, device => device.multiprocessors())
    }

    /// Bytes of device memory: free, and in all.
    ///
    /// # Errors
    ///
    /// If the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize)> {
        on!(self.device, device => device.memory())
    }

    /// Memory for `len` elements, with whatever it held, at a multiple of 256 bytes. Not while capturing.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`](super::CudaError::OutOfMemory) if that much is not free; if the driver
    /// refuses.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Slice<T>> {
        let bytes = len.saturating_mul(size_of::<T>());
        let address = on!(self.device, device => device.alloc(bytes))?;
        Ok(Slice::whole(Memory { device: Arc::clone(&self.device), address, bytes }))
    }

    /// Memory that holds `values`. Not while capturing.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Slice<T>> {
        let slice = self.alloc(values.len())?;
        self.write(&slice, values)?;
        Ok(slice)
    }

    /// Copies `values` to `slice`, behind what is on the stream, and waits. Not while capturing.
    ///
    /// # Errors
    ///
    /// If lengths differ, or if the driver refuses.
    pub fn write<T: Element>(&self, slice: &Slice<T>, values: &[T]) -> Result<()> {
        self.check("write", slice, values.len())?;
        on!(self.device, device => device.write(slice.address(), values))
    }

    /// The values of `slice`, behind what is on the stream. Not while capturing.
    ///
    /// # Errors
    ///
    /// If the driver refuses, or if a kernel before it failed.
    pub fn read<T: Element>(&self, slice: &Slice<T>) -> Result<Vec<T>> {
        let mut values = vec![T::ZERO; slice.len()];
        self.check("read", slice, values.len())?;
        on!(self.device, device => device.read(slice.address(), &mut values))?;
        Ok(values)
    }

    /// Puts a copy of `from` to `to` on the stream; the two may not overlap.
    ///
    /// # Errors
    ///
    /// If lengths differ, or if the driver refuses.
    pub fn copy<T: Element>(&self, from: &Slice<T>, to: &Slice<T>) -> Result<()> {
        self.check("copy", from, to.len())?;
        self.check("copy", to, from.len())?;
        let bytes = from.len() * size_of::<T>();
        on!(self.device, device => device.copy(from.address(), to.address(), bytes))
    }

    /// Waits until everything on the stream is done. Not while capturing.
    ///
    /// # Errors
    ///
    /// If a kernel failed.
    pub fn wait(&self) -> Result<()> {
        on!(self.device, device => device.wait())
    }

    /// Milliseconds that the device spent on what `work` puts on the stream. Not while capturing.
    ///
    /// # Errors
    ///
    /// Those of `work`, or if a kernel failed.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        on!(self.device, device => device.time(work))
    }

    pub(super) fn launch(&self, launch: &Launch) -> Result<()> {
        if launch.grid.0 == 0 || launch.grid.1 == 0 || launch.grid.2 == 0 {
            return Ok(());
        }
        self.device.launch(launch)
    }

    fn check<T: Element>(&self, call: &'static str, slice: &Slice<T>, len: usize) -> Result<()> {
        let ours = Arc::ptr_eq(&self.device, slice.device());
        expect(ours, call, || "memory of this device".into(), || "memory of another".into())?;
        expect(slice.len() == len, call, || format!("{len} elements"), || slice.len().to_string())
    }
}
