//! Kernels recorded once and started together.

use super::device::{Cuda, Device};
use super::error::Result;

/// What was put on the stream while it was recorded, started as one.
///
/// It holds addresses, not slices: the memory its kernels use must outlive it, and its owner sees to that.
pub struct Graph {
    recorded: Recorded,
}

enum Recorded {
    #[cfg(feature = "cuda")]
    Driver(cudarc::driver::CudaGraph),
    #[cfg(feature = "cuda-emulation")]
    Emulated(Vec<super::emulation::Work>, std::sync::Arc<Device>),
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.recorded {
            #[cfg(feature = "cuda")]
            Recorded::Driver(_) => "Graph",
            #[cfg(feature = "cuda-emulation")]
            Recorded::Emulated(..) => "Graph(emulated)",
        })
    }
}

impl Cuda {
    /// Records what `work` puts on the stream, without running it.
    ///
    /// # Errors
    ///
    /// Those of `work`, which may not allocate, read, write or wait; or if the driver refuses.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let recorded = match &*self.device {
            #[cfg(feature = "cuda")]
            Device::Driver(driver) => Recorded::Driver(driver.capture(work)?),
            #[cfg(feature = "cuda-emulation")]
            Device::Emulated(emulated) => {
                Recorded::Emulated(emulated.capture(work)?, std::sync::Arc::clone(&self.device))
            }
        };
        Ok(Graph { recorded })
    }
}

impl Graph {
    /// Puts what was recorded on the stream.
    ///
    /// # Errors
    ///
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        match &self.recorded {
            #[cfg(feature = "cuda")]
            Recorded::Driver(graph) => super::driver::check("launch a graph", graph.launch()),
            #[cfg(feature = "cuda-emulation")]
            Recorded::Emulated(work, device) => match &**device {
                Device::Emulated(emulated) => emulated.replay(work),
                #[cfg(feature = "cuda")]
                Device::Driver(_) => Ok(()),
            },
        }
    }
}
