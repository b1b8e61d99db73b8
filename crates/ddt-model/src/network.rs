//! One interface over all the systems.

use candle_core::{Result, Tensor};

use crate::{ddt::Ddt, network_config::NetworkConfig};

/// A class-conditional velocity network: any of the paper's systems, in this project's time direction.
///
/// Made by [`NetworkConfig::build`]; `t = 0` is noise and `t = 1` data whatever direction the system was
/// published in.
pub trait VelocityNetwork: std::fmt::Debug + Send + Sync {
    /// What it is, and its sizes.
    fn config(&self) -> &NetworkConfig;

    /// The velocity at `(x_t, t)` for each label; label `num_classes` is "no class".
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32 in [0, 1]; `labels: (B)` u32; `-> (B, C, H, W)` in f32, whatever
    /// the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label above `num_classes`.
    fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor>;

    /// The velocity, and the output of block `align_layer`, `(B, L, D)`, before any final activation: what
    /// representation alignment projects.
    ///
    /// Blocks count from 1; 0 is the embedded latent. A network of two halves counts its condition
    /// encoder's, one without counts all.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when there is no such block.
    fn forward_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)>;

    /// The network as two halves, if it has them: what sharing a self-condition needs.
    fn halves(&self) -> Option<&Ddt>;
}
