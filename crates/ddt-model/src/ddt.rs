//! The whole network.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    condition_encoder::ConditionEncoder, config::DdtConfig, error::ModelError, network::VelocityNetwork,
    network_config::NetworkConfig, seeded_init::SeededInit, velocity_decoder::VelocityDecoder,
};

/// The Decoupled Diffusion Transformer: a [`ConditionEncoder`] and a [`VelocityDecoder`].
#[derive(Debug, Clone)]
pub struct Ddt {
    cfg: NetworkConfig,
    encoder: ConditionEncoder,
    decoder: VelocityDecoder,
}

impl Ddt {
    /// Parameters under the names of the published checkpoints.
    ///
    /// # Errors
    /// When the sizes make no network ([`DdtConfig::validate`]) or `vb` lacks a parameter.
    pub fn new(cfg: &DdtConfig, vb: VarBuilder) -> Result<Self> {
        Self::from_halves(&cfg.clone().into(), vb)
    }

    /// Any network of two halves: another decoder (Tab. 5), or SiT's blocks (DDT†).
    ///
    /// The paper says of DDT† that it is the split on SiT's blocks, and no more. Here each half has SiT's
    /// patch embedder and positions, the SiLUs stay in the blocks' modulations, so that
    /// `z_t = t_emb + encoder output`, and the output has the latent's channels.
    ///
    /// # Errors
    /// [`ModelError::NoHalves`] for a family without; otherwise as [`new`](Self::new).
    pub fn from_config(cfg: &NetworkConfig, vb: VarBuilder) -> std::result::Result<Self, ModelError> {
        if !cfg.family.has_halves() {
            return Err(ModelError::NoHalves { family: cfg.family });
        }
        Ok(Self::from_halves(cfg, vb)?)
    }

    fn from_halves(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            cfg: cfg.clone(),
            encoder: ConditionEncoder::from_config(cfg, vb.clone())?,
            decoder: VelocityDecoder::from_config(cfg, vb)?,
        })
    }

    /// An untrained network, the same for the same seed. Its velocity is zero: the final layer starts so.
    pub fn random(cfg: &DdtConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(cfg, VarBuilder::from_backend(Box::new(SeededInit::new(seed)), dtype, device.clone()))
    }

    /// Its sizes.
    pub fn config(&self) -> &DdtConfig {
        &self.cfg.sizes
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

impl VelocityNetwork for Ddt {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ddt::forward(self, x_t, t, labels)
    }

    fn forward_with_features(
        &self,
        x_t: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        align_layer: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (z_t, features) = self.encoder.forward_with_features(x_t, t, labels, align_layer)?;
        Ok((self.decoder.forward(x_t, &z_t)?, features))
    }

    fn halves(&self) -> Option<&Ddt> {
        Some(self)
    }
}
