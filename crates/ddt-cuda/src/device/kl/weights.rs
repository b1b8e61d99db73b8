//! The decoder's weights, on the device.

use std::collections::BTreeMap;

use candle_nn::VarBuilder;
use ddt_adapters::KlConfig;
use ddt_kernels::cuda::{Cuda, Float, Slice};

use super::program::{CHANNELS, KlOp};
use crate::{
    device::weights::{upload, upload_conv},
    error::GpuError,
};

/// A matrix or a kernel, and its bias.
#[derive(Debug, Clone)]
pub(super) struct Affine<T> {
    pub(super) weight: Slice<T>,
    pub(super) bias: Slice<T>,
}

impl<T: Float> Affine<T> {
    fn bytes(&self) -> usize {
        (self.weight.len() + self.bias.len()) * size_of::<T>()
    }
}

/// Matrices of the attention, in f32.
#[derive(Debug, Clone)]
pub(super) struct AttentionWeights {
    pub(super) query: Affine<f32>,
    pub(super) key: Affine<f32>,
    pub(super) value: Affine<f32>,
    pub(super) out: Affine<f32>,
}

/// Weights by the names of operations.
#[derive(Debug)]
pub(super) struct KlWeights<T> {
    /// Convolutions, (out, rows, columns, in) with padded channels, and norms.
    pub(super) affine: BTreeMap<String, Affine<T>>,
    pub(super) attention: BTreeMap<String, AttentionWeights>,
}

impl<T: Float> KlWeights<T> {
    /// Uploads the weights of these operations; `vb` is the root of the file's names.
    ///
    /// # Errors
    /// Too little memory; a missing or misshapen tensor.
    pub(super) fn upload(
        cuda: &Cuda,
        cfg: &KlConfig,
        ops: &[KlOp],
        vb: &VarBuilder<'_>,
    ) -> Result<Self, GpuError> {
        let from = Source { cuda, vb };
        let mut weights = Self { affine: BTreeMap::new(), attention: BTreeMap::new() };
        for op in ops {
            match op {
                KlOp::Conv { name, at, channels, side, .. } => {
                    // Without the padding of the first and the last.
                    let (inp, out) = match name.as_str() {
                        "post_quant_conv" => (cfg.latent_channels, cfg.latent_channels),
                        "decoder.conv_in" => (cfg.latent_channels, *channels),
                        "decoder.conv_out" => (at.channels, 3),
                        _ => (at.channels, *channels),
                    };
                    weights.affine.insert(name.clone(), from.conv(name, [out, inp, *side, *side])?);
                }
                KlOp::Norm { name, at, .. } => {
                    weights.affine.insert(name.clone(), from.affine(name, &[at.channels])?);
                }
                KlOp::Attention { name, at, .. } => {
                    let norm = format!("{name}.group_norm");
                    weights.affine.insert(norm.clone(), from.affine(&norm, &[at.channels])?);
                    let names = if vb.contains_tensor(&format!("{name}.query.weight")) {
                        ["query", "key", "value", "proj_attn"]
                    } else {
                        ["to_q", "to_k", "to_v", "to_out.0"]
                    };
                    let [query, key, value, out] =
                        names.map(|it| from.affine(&format!("{name}.{it}"), &[at.channels, at.channels]));
                    let matrices = AttentionWeights { query: query?, key: key?, value: value?, out: out? };
                    weights.attention.insert(name.clone(), matrices);
                }
                KlOp::Enter { .. } | KlOp::Add { .. } | KlOp::Upsample { .. } | KlOp::Leave { .. } => {}
            }
        }
        Ok(weights)
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        let affine: usize = self.affine.values().map(Affine::bytes).sum();
        let matrices = |it: &AttentionWeights| {
            [&it.query, &it.key, &it.value, &it.out].into_iter().map(Affine::bytes).sum::<usize>()
        };
        affine + self.attention.values().map(matrices).sum::<usize>()
    }
}

struct Source<'a> {
    cuda: &'a Cuda,
    vb: &'a VarBuilder<'a>,
}

impl Source<'_> {
    /// A weight and a bias of its first dimension.
    fn affine<T: Float>(&self, name: &str, weight: &[usize]) -> Result<Affine<T>, GpuError> {
        let vb = self.vb.pp(name);
        let bias = vb.get(weight.first().copied().unwrap_or(0), "bias")?;
        Ok(Affine { weight: upload(self.cuda, &vb.get(weight, "weight")?)?, bias: upload(self.cuda, &bias)? })
    }

    /// A convolution (out, in, rows, columns).
    fn conv<T: Float>(&self, name: &str, weight: [usize; 4]) -> Result<Affine<T>, GpuError> {
        let vb = self.vb.pp(name);
        let (weight, bias) = (vb.get(&weight, "weight")?, vb.get(weight[0], "bias")?);
        let (weight, bias) = upload_conv(self.cuda, &weight, &bias, CHANNELS)?;
        Ok(Affine { weight, bias })
    }
}
