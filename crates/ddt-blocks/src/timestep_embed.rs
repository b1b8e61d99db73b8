//! Flow time to a vector.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::{init, linear::Linear};

/// Sines and cosines of `t`, then an MLP:
///
/// ```text
/// angle[k] = t * exp(-ln(period) k / 128), k = 0 .. 128;  y = mlp.2(silu(mlp.0([cos, sin])))
/// ```
///
/// `t` in [0, 1] is not scaled. The longest period is 10 in DDT, 10,000 in SiT.
#[derive(Debug, Clone)]
pub struct TimestepEmbed {
    first: Linear,
    second: Linear,
    max_period: f64,
}

impl TimestepEmbed {
    const HALF: usize = 128;

    /// DDT's: parameters `mlp.0` and `mlp.2`, biases as PyTorch's.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, 10.0, init::pytorch_linear, vb)
    }

    /// SiT's: the same parameters, with zero biases.
    pub fn sit(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, 10_000.0, |_| init::ZEROS, vb)
    }

    fn build(
        hidden_size: usize,
        max_period: f64,
        bias: impl Fn(usize) -> Init,
        vb: VarBuilder,
    ) -> Result<Self> {
        let linear =
            |fan_in, vb| Linear::with_init(fan_in, hidden_size, init::NORMAL_0_02, Some(bias(fan_in)), vb);
        let vb = vb.pp("mlp");
        let (first, second) = (linear(2 * Self::HALF, vb.pp("0"))?, linear(hidden_size, vb.pp("2"))?);
        Ok(Self { first, second, max_period })
    }

    /// # Shapes
    /// `t: (B)` in f32 `-> (B, D)` in the weights' dtype.
    pub fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let freqs: Vec<f32> = (0..Self::HALF)
            .map(|k| (-self.max_period.ln() * k as f64 / Self::HALF as f64).exp() as f32)
            .collect();
        let freqs = Tensor::from_vec(freqs, (1, Self::HALF), t.device())?;
        let angles = t.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&freqs)?; // (B, HALF)
        let waves = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(self.first.weight().dtype())?;
        self.second.forward(&ddt_kernels::silu(&self.first.forward(&waves)?)?)
    }
}
