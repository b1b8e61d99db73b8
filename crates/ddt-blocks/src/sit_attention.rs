//! SiT's self-attention: no query-key norm, no rotary positions.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::VarBuilder;

use crate::{init, linear::Linear};

/// Multi-head attention over all tokens, of plain differentiable operations:
///
/// ```text
/// q, k, v = split(qkv(x));  y = proj(softmax(q k^T / sqrt(K)) v)
/// ```
///
/// Scores and softmax are in f32.
#[derive(Debug, Clone)]
pub struct SitAttention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

impl SitAttention {
    /// Parameters `qkv` (with a bias, laid out `(3, N, K)`) and `proj`: Xavier-uniform weights, zero biases.
    pub fn new(hidden_size: usize, num_heads: usize, vb: VarBuilder) -> Result<Self> {
        if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
            bail!("expected a hidden size divisible by {num_heads} heads, got {hidden_size}");
        }
        Ok(Self {
            qkv: init::xavier_linear(hidden_size, 3 * hidden_size, vb.pp("qkv"))?,
            proj: init::xavier_linear(hidden_size, hidden_size, vb.pp("proj"))?,
            num_heads,
        })
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, D)`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, l, d) = xs.dims3()?;
        let head_dim = d / self.num_heads;
        let qkv = self.qkv.forward(xs)?.reshape((b, l, 3, self.num_heads, head_dim))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous(); // (B, N, L, K)
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q * (head_dim as f64).sqrt().recip())?.matmul(&k.t()?)?.to_dtype(DType::F32)?;
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(xs.dtype())?; // (B, N, L, L)
        let ys = shares.matmul(&v)?.transpose(1, 2)?.reshape((b, l, d))?; // (B, L, D)
        self.proj.forward(&ys)
    }
}
