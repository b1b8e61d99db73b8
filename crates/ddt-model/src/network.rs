//! The interfaces of all networks: a velocity, and, where there are two halves, each half.

use std::fmt;

use candle_core::{Result, Tensor, bail};
use ddt_blocks::{Modulation, ProjectionHead, WeightedSum};

use crate::network_config::NetworkConfig;

/// Input of a network: noisy latents, their times and class labels.
#[derive(Debug, Clone, Copy)]
pub struct NoisyInput<'a> {
    /// Noisy latents, `(B, C, H, W)`.
    pub x_t: &'a Tensor,
    /// Their times, `(B)` f32, 0 for noise and 1 for data.
    pub t: &'a Tensor,
    /// Their classes, `(B)` u32; `num_classes` is "no class".
    pub labels: &'a Tensor,
}

/// A class-conditional velocity network: any of the paper's systems, in this project's time direction.
///
/// [`NetworkConfig::build`] makes one; `t = 0` is noise and `t = 1` data whatever direction the system was
/// published in.
pub trait VelocityNetwork: fmt::Debug + Send + Sync {
    /// Its family and sizes.
    fn config(&self) -> &NetworkConfig;

    /// The velocity at `(x_t, t)` for each label; label `num_classes` is "no class".
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32 in [0, 1]; `labels: (B)` u32; `-> (B, C, H, W)` in f32, whatever
    /// the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label above `num_classes`.
    fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.forward_with_features(NoisyInput { x_t, t, labels }, 0)?.0)
    }

    /// The velocity, and the output of block `align_layer`, `(B, L, D)`, before any final activation: what
    /// representation alignment projects.
    ///
    /// Blocks count from 1; 0 is the embedded latent. A network of two halves counts its condition
    /// encoder's, one without counts all.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when there is no such block.
    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)>;

    /// The network as two halves, if it has them: what sharing a self-condition needs.
    fn decoupled(&self) -> Option<&dyn DecoupledNetwork> {
        None
    }

    /// The network's own head for representation alignment, if it has one.
    fn projection_head(&self) -> Option<&ProjectionHead> {
        None
    }
}

/// A velocity network of two halves, of which the first may run less often than the second:
/// `decode(x_t, &modulations(&encode(x_t, t, labels)?)?)` is its velocity.
pub trait DecoupledNetwork: VelocityNetwork {
    /// The condition encoder: the self-condition `z_t`.
    ///
    /// # Shapes
    /// `x_t`, `t` and `labels` as in [`forward`](VelocityNetwork::forward); `-> (B, L, D)` in the weights' dtype.
    ///
    /// # Errors
    /// As [`forward`](VelocityNetwork::forward).
    fn encode(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor>;

    /// The part of the velocity decoder that depends on the self-condition alone.
    ///
    /// # Errors
    /// On any shape but that of [`encode`](Self::encode)'s result.
    fn modulations(&self, z_t: &Tensor) -> Result<DecoderModulations>;

    /// The rest of the velocity decoder: the velocity at `x_t`.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B, C, H, W)` in f32.
    ///
    /// # Errors
    /// On any other shape, and for modulations of another network or batch.
    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor>;
}

/// Everything a decoder computes from its condition: the modulation of every block and of the final layer.
///
/// Depends on the condition alone, so it may be cached for as long as the condition is.
#[derive(Debug, Clone)]
pub struct DecoderModulations {
    pub(crate) blocks: Vec<Modulation>,
    pub(crate) final_shift_scale: WeightedSum,
}

impl DecoderModulations {
    /// The weighted sum of modulations of one decoder: a forecast from earlier ones, computed where a layer reads it.
    ///
    /// # Errors
    /// When there are none, or they are of different decoders.
    pub fn weighted_sum(terms: &[(&Self, f64)]) -> Result<Self> {
        let count = terms.first().map_or(0, |(it, _)| it.blocks.len());
        if terms.is_empty() || terms.iter().any(|(it, _)| it.blocks.len() != count) {
            bail!("expected modulations of one decoder");
        }
        let block = |i: usize| {
            let terms: Vec<_> = terms.iter().map(|(it, weight)| (&it.blocks[i], *weight)).collect();
            Modulation::weighted_sum(&terms)
        };
        Ok(Self {
            blocks: (0..count).map(block).collect::<Result<_>>()?,
            final_shift_scale: WeightedSum::of(
                terms.iter().map(|(it, weight)| (&it.final_shift_scale, *weight)),
            )?,
        })
    }

    /// Each block of a decoder with its modulation.
    pub(crate) fn of<'a, B>(
        &'a self,
        blocks: &'a [B],
    ) -> Result<impl ExactSizeIterator<Item = (&'a B, &'a Modulation)>> {
        if blocks.len() != self.blocks.len() {
            bail!("expected modulations of {} blocks, got {}", blocks.len(), self.blocks.len());
        }
        Ok(blocks.iter().zip(&self.blocks))
    }

    /// Rows of the batch.
    pub fn batch(&self) -> Result<usize> {
        self.final_shift_scale.batch()
    }

    /// The modulations of the first `batch` rows.
    pub fn narrow_batch(&self, batch: usize) -> Result<Self> {
        Ok(Self {
            blocks: self.blocks.iter().map(|it| it.narrow_batch(batch)).collect::<Result<_>>()?,
            final_shift_scale: self.final_shift_scale.narrow_batch(batch)?,
        })
    }
}

/// Runs blocks one after the other: the output of the last, and that of block `align_layer`, from 1; 0 is `xs`.
pub(crate) fn run_blocks<B>(
    blocks: impl ExactSizeIterator<Item = B>,
    mut xs: Tensor,
    align_layer: usize,
    forward: impl Fn(B, &Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    if align_layer > blocks.len() {
        bail!("expected an align_layer of at most {} blocks, got {align_layer}", blocks.len());
    }
    let mut features = xs.clone();
    for (i, block) in blocks.enumerate() {
        xs = forward(block, &xs)?;
        if i + 1 == align_layer {
            features = xs.clone();
        }
    }
    Ok((xs, features))
}
