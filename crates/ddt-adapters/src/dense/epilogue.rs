//! What follows a product, before its result is written.

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::exp::{gelu, silu};

/// The activation after bias and residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    None,
    Relu,
    /// With the error function, not its approximation by a hyperbolic tangent.
    Gelu,
    Silu,
}

impl Epilogue {
    #[inline(always)]
    pub(super) fn apply<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            Self::None => x,
            Self::Relu => {
                // Not a maximum, which would hide a NaN.
                let zero = simd.splat_f32s(0.0);
                simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
            }
            Self::Gelu => gelu(simd, x),
            Self::Silu => silu(simd, x),
        }
    }

    /// The same by candle's operations.
    pub(super) fn apply_candle(self, xs: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(xs),
            Self::Relu => xs.relu(),
            Self::Gelu => xs.gelu_erf(),
            Self::Silu => xs.silu(),
        }
    }
}
