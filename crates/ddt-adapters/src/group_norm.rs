//! Group normalisation, optionally followed by an activation, in one pass over memory on the CPU.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use rayon::prelude::*;

/// What follows the affine map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Relu,
    Silu,
}

impl Activation {
    fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            // Not `max`, which would hide a NaN.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// Group normalisation over `(B, C, H, W)`.
///
/// ```text
/// y = act((x - mean) / sqrt(var + eps) * weight + bias),  mean, var over (C / groups, H, W) in f32
/// ```
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    num_groups: usize,
    eps: f64,
    activation: Activation,
}

impl GroupNorm {
    /// Reads `weight` and `bias` of `channels`; ends with `activation`.
    pub(crate) fn new(
        (channels, num_groups): (usize, usize),
        eps: f64,
        activation: Activation,
        vb: VarBuilder,
    ) -> Result<Self> {
        if num_groups == 0 || channels % num_groups != 0 {
            bail!("expected channels divisible into {num_groups} groups, got {channels}");
        }
        let (weight, bias) = (vb.get(channels, "weight")?, vb.get(channels, "bias")?);
        Ok(Self { weight, bias, num_groups, eps, activation })
    }

    /// Adds what it reads to `all`, under `name`.
    pub(crate) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        all.insert(format!("{name}.weight"), self.weight.clone());
        all.insert(format!("{name}.bias"), self.bias.clone());
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if xs.device().is_cpu() && xs.dtype() == DType::F32 {
            let op = Fused { num_groups: self.num_groups, eps: self.eps, activation: self.activation };
            return xs.contiguous()?.apply_op3(&self.weight, &self.bias, op);
        }
        self.forward_candle(xs)
    }

    fn forward_candle(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let grouped = xs.to_dtype(DType::F32)?.reshape((b, self.num_groups, ()))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
        let std = (centred.sqr()?.mean_keepdim(2)? + self.eps)?.sqrt()?;
        let ys = centred.broadcast_div(&std)?.reshape((b, c, h, w))?.to_dtype(xs.dtype())?;
        let ys = ys.broadcast_mul(&self.weight.reshape((1, c, 1, 1))?)?;
        let ys = ys.broadcast_add(&self.bias.reshape((1, c, 1, 1))?)?;
        match self.activation {
            Activation::None => Ok(ys),
            Activation::Relu => ys.relu(),
            Activation::Silu => ys.silu(),
        }
    }
}

struct Fused {
    num_groups: usize,
    eps: f64,
    activation: Activation,
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("group norm: expected contiguous tensors, got {layout:?}"),
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, channels, height, width) = xs_layout.shape().dims4()?;
        let (weight, bias) = (slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        if channels != weight.len() || height * width == 0 {
            bail!("group norm: expected {} channels and pixels, got {:?}", weight.len(), xs_layout.shape());
        }
        let xs = slice(xs, xs_layout)?;
        let mut out = vec![0f32; xs.len()];
        let (area, in_group) = (height * width, channels / self.num_groups);
        let len = in_group * area;
        out.par_chunks_mut(len).zip(xs.par_chunks(len)).enumerate().for_each(|(index, (out, xs))| {
            let (mean, std) = mean_and_std(xs, self.eps);
            let first = index % self.num_groups * in_group;
            let planes = out.chunks_exact_mut(area).zip(xs.chunks_exact(area));
            for ((out, xs), channel) in planes.zip(first..) {
                let scale = weight[channel] / std;
                let shift = bias[channel] - mean * scale;
                for (out, &x) in out.iter_mut().zip(xs) {
                    *out = self.activation.apply(x * scale + shift);
                }
            }
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }
}

/// Mean and `sqrt(var + eps)`.
fn mean_and_std(xs: &[f32], eps: f64) -> (f32, f32) {
    let n = xs.len() as f64;
    let mean = (sum(xs, |x| x) / n) as f32;
    let var = sum(xs, |x| (x - mean) * (x - mean)) / n;
    (mean, (var + eps).sqrt() as f32)
}

/// Sums short runs in f32 lanes (which vectorise), and the runs in f64.
fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let run_sum = |run: &[f32]| {
        let mut lanes = [0f32; 16];
        let (whole, rest) = run.as_chunks::<16>();
        for chunk in whole {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f(x);
            }
        }
        f64::from(lanes.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>())
    };
    xs.chunks(4096).map(run_sum).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn fused_agrees_with_plain_operations() {
        for activation in [Activation::None, Activation::Relu, Activation::Silu] {
            let norm = GroupNorm {
                weight: random(1, 12),
                bias: random(2, 12),
                num_groups: 4,
                eps: 1e-6,
                activation,
            };
            let xs = (random(3, (3, 12, 5, 9)) + 2.0).unwrap();
            let (got, want) = (norm.forward(&xs).unwrap(), norm.forward_candle(&xs).unwrap());
            assert!(rel_rms(&got, &want) < 1e-5, "{activation:?}");
        }
    }

    #[test]
    fn other_channel_counts_are_errors() {
        let vb = VarBuilder::zeros(DType::F32, &candle_core::Device::Cpu);
        let norm = GroupNorm::new((8, 4), 1e-6, Activation::None, vb.clone()).unwrap();
        assert!(norm.forward(&random(1, (1, 4, 2, 2))).is_err());
        assert!(norm.forward(&random(1, (8, 2, 2))).is_err());
        assert!(GroupNorm::new((6, 4), 1e-6, Activation::None, vb.clone()).is_err());
        assert!(GroupNorm::new((6, 0), 1e-6, Activation::None, vb).is_err());
    }
}
