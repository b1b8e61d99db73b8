//! Flow time to a vector.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{init, linear::Linear};

/// Sines and cosines of `t`, then an MLP:
///
/// ```text
/// angle[k] = t * exp(-ln(10) k / 128), k = 0 .. 128;  y = mlp.2(silu(mlp.0([cos, sin])))
/// ```
///
/// Differs from DiT: `t` in [0, 1] is not scaled, and the longest period is 10, not 10,000.
#[derive(Debug, Clone)]
pub struct TimestepEmbed {
    first: Linear,
    second: Linear,
}

impl TimestepEmbed {
    const HALF: usize = 128;
    const MAX_PERIOD: f64 = 10.0;

    /// Parameters `mlp.0` and `mlp.2`.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let linear = |fan_in, vb| {
            let bias = Some(init::pytorch_linear(fan_in));
            Linear::with_init(fan_in, hidden_size, init::NORMAL_0_02, bias, vb)
        };
        let vb = vb.pp("mlp");
        Ok(Self { first: linear(2 * Self::HALF, vb.pp("0"))?, second: linear(hidden_size, vb.pp("2"))? })
    }

    /// # Shapes
    /// `t: (B)` in f32 `-> (B, D)` in the weights' dtype.
    pub fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let freqs: Vec<f32> = (0..Self::HALF)
            .map(|k| (-Self::MAX_PERIOD.ln() * k as f64 / Self::HALF as f64).exp() as f32)
            .collect();
        let freqs = Tensor::from_vec(freqs, (1, Self::HALF), t.device())?;
        let angles = t.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&freqs)?; // (B, HALF)
        let waves = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(self.first.weight().dtype())?;
        self.second.forward(&ddt_kernels::silu(&self.first.forward(&waves)?)?)
    }
}
