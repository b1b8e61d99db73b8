//! Unscaled latents to pixels.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::KlConfig;
use super::mid_block::MidBlock;
use super::resnet::Resnet;
use crate::conv::{Conv2d, Geometry};
use crate::group_norm::{Activation, GroupNorm};

/// `(B, C, H, W) -> (B, 3, f H, f W)`.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The blocks of one resolution, and the convolution after doubling it.
#[derive(Debug, Clone)]
struct Level {
    resnets: Vec<Resnet>,
    double: Option<Conv2d>,
}

impl Decoder {
    pub(super) fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let last = cfg.block_out_channels.len() - 1;
        let mut levels = Vec::new();
        let mut inp = cfg.coarsest();
        for (i, &channels) in cfg.block_out_channels.iter().rev().enumerate() {
            let vb = vb.pp("up_blocks").pp(i);
            let mut resnets = Vec::new();
            for j in 0..=cfg.layers_per_block {
                resnets.push(Resnet::new(cfg, inp, channels, vb.pp("resnets").pp(j))?);
                inp = channels;
            }
            let double = (i < last)
                .then(|| Conv2d::new(channels, channels, Geometry::SAME, vb.pp("upsamplers.0.conv")))
                .transpose()?;
            levels.push(Level { resnets, double });
        }
        Ok(Self {
            conv_in: Conv2d::new(cfg.latent_channels, cfg.coarsest(), Geometry::SAME, vb.pp("conv_in"))?,
            mid: MidBlock::new(cfg, vb.pp("mid_block"))?,
            levels,
            norm_out: GroupNorm::new(
                (cfg.finest(), cfg.norm_num_groups),
                KlConfig::NORM_EPS,
                Activation::Silu,
                vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(cfg.finest(), 3, Geometry::SAME, vb.pp("conv_out"))?,
        })
    }

    /// Adds what it reads to `all`, under `name`.
    pub(super) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        self.conv_in.parameters(&format!("{name}.conv_in"), all);
        self.mid.parameters(&format!("{name}.mid_block"), all);
        for (i, level) in self.levels.iter().enumerate() {
            for (j, resnet) in level.resnets.iter().enumerate() {
                resnet.parameters(&format!("{name}.up_blocks.{i}.resnets.{j}"), all);
            }
            if let Some(conv) = &level.double {
                conv.parameters(&format!("{name}.up_blocks.{i}.upsamplers.0.conv"), all);
            }
        }
        self.norm_out.parameters(&format!("{name}.conv_norm_out"), all);
        self.conv_out.parameters(&format!("{name}.conv_out"), all);
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = self.mid.forward(&self.conv_in.forward(xs)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                xs = resnet.forward(&xs)?;
            }
            if let Some(conv) = &level.double {
                let (_, _, h, w) = xs.dims4()?;
                xs = conv.forward(&xs.upsample_nearest2d(2 * h, 2 * w)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&xs)?)
    }
}
