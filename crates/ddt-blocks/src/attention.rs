//! Self-attention with normalised, rotated queries and keys.

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::RopeTable;

use crate::{linear::Linear, projection::Projection, rms_norm::RmsNorm};

/// Multi-head attention over all tokens:
///
/// ```text
/// q, k, v = split(qkv(x));  q, k = rope(rms(q)), rope(rms(k));  y = proj(softmax(q k^T / sqrt(K)) v)
/// ```
#[derive(Debug, Clone)]
pub struct Attention {
    pub(crate) qkv: Projection,
    pub(crate) q_norm: RmsNorm,
    pub(crate) k_norm: RmsNorm,
    pub(crate) proj: Projection,
    pub(crate) num_heads: usize,
}

impl Attention {
    /// Parameters `qkv` (no bias, laid out `(3, N, K)`), `q_norm`, `k_norm`, `proj`.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
            bail!("expected a hidden size divisible by {num_heads} heads, got {hidden_size}");
        }
        let head_dim = hidden_size / num_heads;
        Ok(Self {
            qkv: Projection::new(Linear::no_bias(hidden_size, 3 * hidden_size, vb.pp("qkv"))?)?,
            q_norm: RmsNorm::new(head_dim, vb.pp("q_norm"))?,
            k_norm: RmsNorm::new(head_dim, vb.pp("k_norm"))?,
            proj: Projection::new(Linear::new(hidden_size, hidden_size, vb.pp("proj"))?)?,
            num_heads,
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`; `rope` has `L` rows.
    pub fn forward(&self, xs: &Tensor, rope: &RopeTable) -> Result<Tensor> {
        let qkv = self.qkv.forward(xs)?; // (B, L, 3D)
        let (q_weight, k_weight) = (self.q_norm.weight(), self.k_norm.weight());
        let ys = ddt_kernels::attention(&qkv, q_weight, k_weight, rope, self.num_heads, RmsNorm::EPS)?;
        self.proj.forward(&ys)
    }
}
