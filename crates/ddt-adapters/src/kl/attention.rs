//! Single-head attention over the positions of the coarsest resolution.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, ops};

use super::config::KlConfig;
use crate::group_norm::{Activation, GroupNorm};

/// Queries that are scored at once, which bounds the memory of a large image.
const MAX_QUERIES: usize = 1024;

/// Of its matrices, in the files of today.
const NAMES: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// `x + out(softmax(q k^T / sqrt(C)) v)`, over the normalised positions: `(B, C, H, W) -> same`.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl Attention {
    pub(super) fn new(cfg: &KlConfig, vb: VarBuilder) -> Result<Self> {
        let channels = cfg.coarsest();
        let names =
            if vb.contains_tensor("query.weight") { ["query", "key", "value", "proj_attn"] } else { NAMES };
        let linear = |name: &str| -> Result<Linear> {
            let vb = vb.pp(name);
            Ok(Linear::new(vb.get((channels, channels), "weight")?, Some(vb.get(channels, "bias")?)))
        };
        let [query, key, value, out] = names.map(linear);
        let norm = GroupNorm::new(
            (channels, cfg.norm_num_groups),
            KlConfig::NORM_EPS,
            Activation::None,
            vb.pp("group_norm"),
        )?;
        Ok(Self { norm, query: query?, key: key?, value: value?, out: out? })
    }

    /// Adds what it reads to `all`, under `name`; matrices under their newer names.
    pub(super) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        self.norm.parameters(&format!("{name}.group_norm"), all);
        let linears = [&self.query, &self.key, &self.value, &self.out];
        for (linear, part) in linears.into_iter().zip(NAMES) {
            all.insert(format!("{name}.{part}.weight"), linear.weight().clone());
            all.extend(linear.bias().map(|bias| (format!("{name}.{part}.bias"), bias.clone())));
        }
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let tokens = self.norm.forward(xs)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (B, H W, C)
        let query = (self.query.forward(&tokens)? / (c as f64).sqrt())?;
        let key = self.key.forward(&tokens)?.transpose(1, 2)?; // (B, C, H W)
        let value = self.value.forward(&tokens)?;
        let mut rows = Vec::new();
        for first in (0..h * w).step_by(MAX_QUERIES) {
            let query = query.narrow(1, first, MAX_QUERIES.min(h * w - first))?.contiguous()?;
            let scores = query.matmul(&key)?; // (B, queries, H W)
            let weights = ops::softmax(&scores.to_dtype(DType::F32)?, 2)?.to_dtype(xs.dtype())?;
            rows.push(weights.matmul(&value)?);
        }
        let ys = self.out.forward(&Tensor::cat(&rows, 1)?)?; // (B, H W, C)
        xs + ys.transpose(1, 2)?.reshape((b, c, h, w))?
    }
}
