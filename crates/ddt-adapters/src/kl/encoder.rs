//! Pixels to the posterior's moments.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::KlConfig;
use super::mid_block::MidBlock;
use super::resnet::Resnet;
use crate::conv::{Conv2d, Geometry};
use crate::group_norm::{Activation, GroupNorm};

/// `(B, 3, f H, f W) -> (B, 2 C, H, W)`.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The blocks of one resolution, and the convolution that halves it.
#[derive(Debug, Clone)]
struct Level {
    resnets: Vec<Resnet>,
    halve: Option<Conv2d>,
}

impl Encoder {
    pub(super) fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let last = cfg.block_out_channels.len() - 1;
        let mut levels = Vec::new();
        let mut inp = cfg.finest();
        for (i, &channels) in cfg.block_out_channels.iter().enumerate() {
            let vb = vb.pp("down_blocks").pp(i);
            let mut resnets = Vec::new();
            for j in 0..cfg.layers_per_block {
                resnets.push(Resnet::new(cfg, inp, channels, vb.pp("resnets").pp(j))?);
                inp = channels;
            }
            let halve = (i < last)
                .then(|| {
                    let vb = vb.pp("downsamplers.0.conv");
                    Conv2d::new(channels, channels, Geometry::HALVE_PAD_AFTER, vb)
                })
                .transpose()?;
            levels.push(Level { resnets, halve });
        }
        Ok(Self {
            conv_in: Conv2d::new(3, cfg.finest(), Geometry::SAME, vb.pp("conv_in"))?,
            levels,
            mid: MidBlock::new(cfg, vb.pp("mid_block"))?,
            norm_out: GroupNorm::new(
                (cfg.coarsest(), cfg.norm_num_groups),
                KlConfig::NORM_EPS,
                Activation::Silu,
                vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::new(
                cfg.coarsest(),
                2 * cfg.latent_channels,
                Geometry::SAME,
                vb.pp("conv_out"),
            )?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(xs)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                xs = resnet.forward(&xs)?;
            }
            if let Some(halve) = &level.halve {
                xs = halve.forward(&xs)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&self.mid.forward(&xs)?)?)
    }
}
