//! Matrix products.

use super::device::{Backend, Cuda};
use super::element::Float;
use super::error::{Result, expect};
use super::memory::Slice;
use super::rows::{check_len, check_slice};

const NAME: &str = "gemm";

/// What [`Cuda::gemm`] works on: the product of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Gemm<'a, T> {
    /// (m, k).
    pub input: &'a Slice<T>,
    /// (n, k).
    pub weight: &'a Slice<T>,
    /// (n).
    pub bias: Option<&'a Slice<T>>,
    /// The result, (m, n).
    pub out: &'a Slice<T>,
    /// k.
    pub depth: usize,
    /// Scratch memory of the product; 32 MiB are enough for every way of multiplying on an H100.
    pub workspace: &'a Slice<u8>,
}

/// All that a way of multiplying depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) with_bias: bool,
    /// [`Float::INDEX`].
    pub(super) element: usize,
    pub(super) workspace: usize,
}

/// A product's addresses; 0 for no bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) input: u64,
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) workspace: u64,
}

impl Cuda {
    /// `out = input weight^T + bias`, by cuBLASLt; sums in f32, and f32 factors are not rounded.
    ///
    /// How to multiply is looked up once a shape: by [`Self::tune_gemm`], or as cuBLASLt thinks best.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoCublas`](super::CudaError::NoCublas) where the library is not; if a slice has another
    /// length or lies badly, or if the library or the driver refuses.
    pub fn gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<()> {
        let (shape, places) = self.check_gemm(arguments)?;
        if shape.m == 0 {
            return Ok(());
        }
        match &self.device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(driver) => driver.gemm(shape, places),
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(emulated) => emulated.gemm(shape, places),
        }
    }

    /// Times all ways to do this product that cuBLASLt names, and keeps the fastest for its shape. `out` is
    /// overwritten. Not while capturing.
    ///
    /// # Errors
    ///
    /// As [`Self::gemm`].
    pub fn tune_gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<()> {
        let (shape, places) = self.check_gemm(arguments)?;
        if shape.m == 0 {
            return Ok(());
        }
        match &self.device.backend {
            #[cfg(feature = "cuda")]
            Backend::Driver(driver) => driver.tune_gemm(shape, places),
            #[cfg(feature = "cuda-emulation")]
            Backend::Emulated(emulated) => emulated.gemm(shape, places),
        }
    }

    fn check_gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<(Shape, Places)> {
        let Gemm { input, weight, bias, out, depth: k, workspace } = *arguments;
        expect(
            k > 0 && !weight.is_empty(),
            NAME,
            || "a depth above 0 and a weight".into(),
            || format!("depth {k} and {} elements", weight.len()),
        )?;
        let (m, n) = (input.len() / k, weight.len() / k);
        check_len(NAME, &self.device, ("input, whole rows of the depth", input), m * k)?;
        check_len(NAME, &self.device, ("weight, whole rows of the depth", weight), n * k)?;
        check_len(NAME, &self.device, ("out", out), m * n)?;
        bias.map_or(Ok(()), |bias| check_len(NAME, &self.device, ("bias", bias), n))?;
        check_slice(NAME, &self.device, workspace)?;
        let shape =
            Shape { m, n, k, with_bias: bias.is_some(), element: T::INDEX, workspace: workspace.len() };
        let places = Places {
            input: input.address(),
            weight: weight.address(),
            bias: bias.map_or(0, Slice::address),
            out: out.address(),
            workspace: workspace.address(),
        };
        Ok((shape, places))
    }
}
