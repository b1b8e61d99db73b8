//! Named initialisers, because candle's defaults are not PyTorch's.

use candle_core::Result;
use candle_nn::{Init, VarBuilder};

use crate::linear::Linear;

/// All zeros.
pub const ZEROS: Init = Init::Const(0.0);
/// All ones.
pub const ONES: Init = Init::Const(1.0);
/// `N(0, 0.02^2)`: the label table and the weights of the timestep MLP.
pub const NORMAL_0_02: Init = Init::Randn { mean: 0.0, stdev: 0.02 };

/// PyTorch's default for `nn.Linear`, weight and bias alike: uniform in `+-1/sqrt(fan_in)`.
pub fn pytorch_linear(fan_in: usize) -> Init {
    symmetric((fan_in as f64).sqrt().recip())
}

/// Xavier uniform: uniform in `+-sqrt(6 / (fan_in + fan_out))`.
pub fn xavier_uniform(fan_in: usize, fan_out: usize) -> Init {
    symmetric((6.0 / (fan_in + fan_out) as f64).sqrt())
}

fn symmetric(bound: f64) -> Init {
    Init::Uniform { lo: -bound, up: bound }
}

/// A linear layer with an Xavier-uniform weight and zero bias, as DiT and SiT initialise all of theirs.
pub fn xavier_linear(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::with_init(in_size, out_size, xavier_uniform(in_size, out_size), Some(ZEROS), vb)
}

/// A linear layer that starts at zero.
pub fn zero_linear(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::with_init(in_size, out_size, ZEROS, Some(ZEROS), vb)
}
