//! The whole network.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    condition_encoder::ConditionEncoder, config::DdtConfig, seeded_init::SeededInit,
    velocity_decoder::VelocityDecoder,
};

/// The Decoupled Diffusion Transformer: a [`ConditionEncoder`] and a [`VelocityDecoder`].
#[derive(Debug, Clone)]
pub struct Ddt {
    cfg: DdtConfig,
    encoder: ConditionEncoder,
    decoder: VelocityDecoder,
}

impl Ddt {
    /// Parameters under the names of the published checkpoints.
    ///
    /// # Errors
    /// When the sizes make no network ([`DdtConfig::validate`]) or `vb` lacks a parameter.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            cfg: cfg.clone(),
            encoder: ConditionEncoder::new(cfg, vb.clone())?,
            decoder: VelocityDecoder::new(cfg, vb)?,
        })
    }

    /// An untrained network, the same for the same seed. Its velocity is zero: the final layer starts so.
    pub fn random(cfg: &DdtConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(cfg, VarBuilder::from_backend(Box::new(SeededInit::new(seed)), dtype, device.clone()))
    }

    /// Its sizes.
    pub fn config(&self) -> &DdtConfig {
        &self.cfg
    }

    /// The half that makes a self-condition.
    pub fn encoder(&self) -> &ConditionEncoder {
        &self.encoder
    }

    /// The half that makes a velocity.
    pub fn decoder(&self) -> &VelocityDecoder {
        &self.decoder
    }

    /// The velocity at `(x_t, t)` for each label; label `num_classes` is "no class".
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W)`; `t: (B)` f32, 0 for noise and 1 for data; `labels: (B)` u32;
    /// `-> (B, C, H, W)` in f32, whatever the weights' dtype.
    ///
    /// # Errors
    /// On any other shape, and on the CPU for a label above `num_classes`.
    pub fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.decoder.forward(x_t, &self.encoder.forward(x_t, t, labels)?)
    }
}
