//! Kernels recorded once and started together.

use std::sync::Arc;

use super::device::{Backend, Cuda, Device};
use super::error::Result;

/// What was put on the stream while it was recorded, started as one.
///
/// As long as it lives, the device frees no memory: what its kernels use stays where it was.
pub struct Graph {
    /// Dropped by hand, before the device frees what was kept for it.
    recorded: Option<Recorded>,
    device: Arc<Device>,
}

enum Recorded {
    #[cfg(feature = "cuda")]
    Driver(cudarc::driver::CudaGraph),
    #[cfg(feature = "cuda-emulation")]
    Emulated(Vec<super::emulation::Work>),
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({:?})", self.device)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.recorded = None;
        self.device.graph_is_gone();
    }
}

impl Cuda {
    /// Records what `work` puts on the stream, without running it.
    ///
    /// # Errors
    ///
    /// Those of `work`, which may not allocate, read, write or wait; or if the driver refuses.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Counted first: what `work` lets go of while recording is part of what is recorded.
        self.device.keep_for_graph();
        let mut graph = Graph { recorded: None, device: Arc::clone(&self.device) };
        graph.recorded = Some(match &self.device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(driver) => Recorded::Driver(driver.capture(work)?),
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(emulated) => Recorded::Emulated(emulated.capture(work)?),
        });
        Ok(graph)
    }
}

impl Graph {
    /// Puts what was recorded on the stream.
    ///
    /// # Errors
    ///
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        match (&self.recorded, &self.device.backend) {
            #[cfg(feature = "cuda")]
            (Some(Recorded::Driver(graph)), Backend::Driver(_)) => {
                super::driver::check("launch a graph", graph.launch())
            }
            #[cfg(feature = "cuda-emulation")]
            (Some(Recorded::Emulated(work)), Backend::Emulated(emulated)) => emulated.replay(work),
            _ => Ok(()),
        }
    }
}
