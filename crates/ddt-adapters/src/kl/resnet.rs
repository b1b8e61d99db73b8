//! A residual block of two convolutions.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::KlConfig;
use crate::conv::{Conv2d, Geometry};
use crate::group_norm::{Activation, GroupNorm};

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`: `(B, in, H, W) -> (B, out, H, W)`.
#[derive(Debug, Clone)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// A 1x1 convolution where the number of channels changes.
    shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(super) fn new(cfg: &KlConfig, inp: usize, out: usize, vb: VarBuilder) -> Result<Self> {
        let norm = |channels, name| {
            GroupNorm::new((channels, cfg.norm_num_groups), KlConfig::NORM_EPS, Activation::Silu, vb.pp(name))
        };
        let shortcut = (inp != out)
            .then(|| Conv2d::new(inp, out, Geometry::POINT, vb.pp("conv_shortcut")))
            .transpose()?;
        Ok(Self {
            norm1: norm(inp, "norm1")?,
            conv1: Conv2d::new(inp, out, Geometry::SAME, vb.pp("conv1"))?,
            norm2: norm(out, "norm2")?,
            conv2: Conv2d::new(out, out, Geometry::SAME, vb.pp("conv2"))?,
            shortcut,
        })
    }

    /// Adds what it reads to `all`, under `name`.
    pub(super) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        self.norm1.parameters(&format!("{name}.norm1"), all);
        self.conv1.parameters(&format!("{name}.conv1"), all);
        self.norm2.parameters(&format!("{name}.norm2"), all);
        self.conv2.parameters(&format!("{name}.conv2"), all);
        if let Some(shortcut) = &self.shortcut {
            shortcut.parameters(&format!("{name}.conv_shortcut"), all);
        }
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv1.forward(&self.norm1.forward(xs)?)?;
        let ys = self.conv2.forward(&self.norm2.forward(&ys)?)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(xs)? + ys,
            None => xs + ys,
        }
    }
}
