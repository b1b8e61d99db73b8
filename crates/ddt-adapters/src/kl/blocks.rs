//! Blocks that encoder and decoder share. Images are `(B, H, W, C)`.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use ddt_kernels::{Activation, Window2d};

use super::config::KlConfig;
use crate::layers::{Conv2d, GroupNorm, Linear, attention, unrounded};

/// Residual block of two convolutions (`ResnetBlock2D`): `(B, H, W, in) -> (B, H, W, out)`.
///
/// ```text
/// shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))
/// ```
#[derive(Debug, Clone)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    /// A 1 x 1 convolution where the number of channels changes.
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(cfg: &KlConfig, inp: usize, out: usize, vb: VarBuilder) -> Result<Self> {
        let shortcut = || Conv2d::new(inp, out, Window2d::POINT, vb.pp("conv_shortcut"));
        Ok(Self {
            norm1: norm(cfg, inp, vb.pp("norm1"))?.then(Activation::Silu),
            conv1: Conv2d::new(inp, out, Window2d::SAME_3, vb.pp("conv1"))?,
            norm2: norm(cfg, out, vb.pp("norm2"))?.then(Activation::Silu),
            conv2: Conv2d::new(out, out, Window2d::SAME_3, vb.pp("conv2"))?,
            conv_shortcut: (inp != out).then(shortcut).transpose()?,
        })
    }
}

impl Module for Resnet {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = self.conv1.forward(&self.norm1.forward(xs)?)?;
        let ys = self.norm2.forward(&ys)?;
        match &self.conv_shortcut {
            Some(shortcut) => self.conv2.forward_add(&ys, &shortcut.forward(xs)?),
            None => self.conv2.forward_add(&ys, xs),
        }
    }
}

/// The residual blocks of one resolution, and the convolution to the next.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    resnets: Vec<Resnet>,
    sampler: Option<Conv2d>,
}

impl Stage {
    /// `count` residual blocks, the first from `inp` to `out` channels, without a convolution.
    pub(super) fn new(cfg: &KlConfig, inp: usize, out: usize, count: usize, vb: VarBuilder) -> Result<Self> {
        let resnet = |i| Resnet::new(cfg, if i == 0 { inp } else { out }, out, vb.pp("resnets").pp(i));
        Ok(Self { resnets: (0..count).map(resnet).collect::<Result<_>>()?, sampler: None })
    }

    /// Followed by a convolution to the next resolution.
    pub(super) fn then(self, sampler: Conv2d) -> Self {
        Self { sampler: Some(sampler), ..self }
    }

    /// `(B, H, W, in) -> (B, H', W', out)`. Takes `xs` itself, whose memory is free after the first block.
    pub(super) fn run(&self, xs: Tensor) -> Result<Tensor> {
        let xs = self.resnets.iter().try_fold(xs, |xs, resnet| resnet.forward(&xs))?;
        self.sampler.as_ref().map_or(Ok(xs.clone()), |sampler| sampler.forward(&xs))
    }
}

/// The block at the lowest resolution (`UNetMidBlock2D`): residual block, attention, residual block.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    resnets: [Resnet; 2],
    attention: Attention,
}

impl MidBlock {
    pub(super) fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let channels = cfg.bottom_channels();
        let resnet = |name| Resnet::new(cfg, channels, channels, vb.pp(name));
        Ok(Self {
            resnets: [resnet("resnets.0")?, resnet("resnets.1")?],
            attention: Attention::new(cfg, vb.pp("attentions.0"))?,
        })
    }
}

impl Module for MidBlock {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let [first, second] = &self.resnets;
        second.forward(&self.attention.forward(&first.forward(xs)?)?)
    }
}

/// Attention of one head over the positions: `x + out(softmax(q k^T / sqrt(C)) v)`, of the normalised `x`.
#[derive(Debug, Clone)]
struct Attention {
    group_norm: GroupNorm,
    /// Queries, keys and values.
    qkv: Linear,
    out: Linear,
}

impl Attention {
    fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let channels = cfg.bottom_channels();
        let [query, key, value, out] = if vb.contains_tensor("query.weight") {
            ["query", "key", "value", "proj_attn"]
        } else {
            ["to_q", "to_k", "to_v", "to_out.0"]
        };
        let [query, key, value] = [query, key, value].map(|name| vb.pp(name));
        let weight = |vb: &VarBuilder| vb.get((channels, channels), "weight");
        let bias = |vb: &VarBuilder| unrounded(vb).get(channels, "bias");
        let weights = Tensor::cat(&[weight(&query)?, weight(&key)?, weight(&value)?], 0)?;
        let biases = Tensor::cat(&[bias(&query)?, bias(&key)?, bias(&value)?], 0)?;
        Ok(Self {
            group_norm: norm(cfg, channels, vb.pp("group_norm"))?,
            qkv: Linear::of(&weights, Some(&biases))?,
            out: Linear::new(channels, channels, vb.pp(out))?,
        })
    }
}

impl Module for Attention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.group_norm.forward(xs)?)?.flatten(1, 2)?; // (B, H W, 3 C)
        self.out.forward_add(&attention(&qkv, 1)?, &xs.flatten(1, 2)?)?.reshape(xs.shape())
    }
}

pub(super) fn norm(cfg: &KlConfig, channels: usize, vb: VarBuilder) -> Result<GroupNorm> {
    GroupNorm::new(cfg.norm_num_groups, channels, KlConfig::NORM_EPS, vb)
}
