//! What the decoder multiplies with, on the device.

use std::collections::BTreeMap;

use candle_core::Tensor;
use ddt_adapters::KlDecoder;
use ddt_kernels::cuda::{Cuda, Float, Slice};

use super::program::{CHANNELS, KlOp};
use crate::device::upload::{upload, upload_conv};
use crate::error::GpuError;

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
    /// # Errors
    /// Too little memory; a name that the decoder does not have.
    pub(super) fn upload(cuda: &Cuda, ops: &[KlOp], decoder: &KlDecoder) -> Result<Self, GpuError> {
        let all = decoder.parameters();
        let from = Source { cuda, all: &all };
        let mut weights = Self { affine: BTreeMap::new(), attention: BTreeMap::new() };
        for op in ops {
            match op {
                KlOp::Conv { name, .. } => {
                    weights.affine.insert(name.clone(), from.conv(name)?);
                }
                KlOp::Norm { name, .. } => {
                    weights.affine.insert(name.clone(), from.affine(name)?);
                }
                KlOp::Attention { name, .. } => {
                    let norm = format!("{name}.group_norm");
                    weights.affine.insert(norm.clone(), from.affine(&norm)?);
                    let [query, key, value, out] =
                        ["to_q", "to_k", "to_v", "to_out.0"].map(|it| from.affine(&format!("{name}.{it}")));
                    let matrices = AttentionWeights { query: query?, key: key?, value: value?, out: out? };
                    weights.attention.insert(name.clone(), matrices);
                }
                KlOp::Enter { .. } | KlOp::Add { .. } | KlOp::Double { .. } | KlOp::Leave { .. } => {}
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
    all: &'a BTreeMap<String, Tensor>,
}

impl Source<'_> {
    fn tensor(&self, name: &str) -> candle_core::Result<&Tensor> {
        match self.all.get(name) {
            Some(tensor) => Ok(tensor),
            None => candle_core::bail!("expected a parameter {name} among {}, got none", self.all.len()),
        }
    }

    /// As the file has it.
    fn affine<T: Float>(&self, name: &str) -> Result<Affine<T>, GpuError> {
        let weight = upload(self.cuda, self.tensor(&format!("{name}.weight"))?)?;
        Ok(Affine { weight, bias: upload(self.cuda, self.tensor(&format!("{name}.bias"))?)? })
    }

    fn conv<T: Float>(&self, name: &str) -> Result<Affine<T>, GpuError> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let bias = self.tensor(&format!("{name}.bias"))?;
        let (weight, bias) = upload_conv(self.cuda, (weight, bias), CHANNELS)?;
        Ok(Affine { weight, bias })
    }
}
