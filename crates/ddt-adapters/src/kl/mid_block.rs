//! The blocks between the encoder's or decoder's resolutions and its latent end.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::attention::Attention;
use super::config::KlConfig;
use super::resnet::Resnet;

/// Residual block, attention, residual block, at the coarsest resolution.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: Resnet,
    attention: Attention,
    second: Resnet,
}

impl MidBlock {
    pub(super) fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let channels = cfg.coarsest();
        Ok(Self {
            first: Resnet::new(cfg, channels, channels, vb.pp("resnets.0"))?,
            attention: Attention::new(cfg, vb.pp("attentions.0"))?,
            second: Resnet::new(cfg, channels, channels, vb.pp("resnets.1"))?,
        })
    }

    /// Adds what it reads to `all`, under `name`.
    pub(super) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        self.first.parameters(&format!("{name}.resnets.0"), all);
        self.attention.parameters(&format!("{name}.attentions.0"), all);
        self.second.parameters(&format!("{name}.resnets.1"), all);
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.attention.forward(&self.first.forward(xs)?)?)
    }
}
