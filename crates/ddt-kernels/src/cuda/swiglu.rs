//! The gate of a feed-forward layer.

use super::device::Cuda;
use super::element::Float;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::Slice;
use super::rows::check_len;

const NAME: &str = "swiglu";
/// What [`Cuda::swiglu`] works on.
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu<'a, T> {
    /// The product with both weights, (T, 2 F): rows of `a`, then `b`.
    pub ab: &'a Slice<T>,
    /// F.
    pub hidden: usize,
    /// The result, (T, F).
    pub out: &'a Slice<T>,
}

impl Cuda {
    /// The gate of a SwiGLU feed-forward layer.
    ///
    /// ```text
    /// out = a / (1 + exp(-a)) * b
    /// ```
    ///
    /// Fast where F is a multiple of 8 (bf16) or 4 (f32): pad weights with zeros, which change nothing.
    ///
    /// # Errors
    ///
    /// If a slice has another length or lies badly, or if the driver refuses.
    pub fn swiglu<T: Float>(&self, arguments: &SwiGlu<'_, T>) -> Result<()> {
        let SwiGlu { ab, hidden, out } = *arguments;
        expect(hidden > 0, NAME, || "a hidden size above 0".into(), || hidden.to_string())?;
        let tokens = out.len() / hidden;
        check_len(NAME, &self.device, ("out, whole rows of the hidden size", out), tokens * hidden)?;
        check_len(NAME, &self.device, ("ab", ab), 2 * out.len())?;
        let single = usize::from(!hidden.is_multiple_of(T::LANES));
        let lanes = if single == 1 { 1 } else { T::LANES };
        let mut values = Arguments::default();
        values.address(ab.address()).address(out.address()).u32(tokens as u32).u32(hidden as u32);
        self.each(NAME, kernels::SWIGLU[single][T::INDEX], out.len() / lanes, values)
    }
}
