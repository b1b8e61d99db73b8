//! GEMM on the device.

use super::device::Cuda;
use super::error::{Result, expect};
use super::memory::{Float, Slice};
use super::rows::{check_len, check_slice};
use super::shapes::{GemmPlaces, GemmShape};

const NAME: &str = "gemm";

/// Arguments of [`Cuda::gemm`], a linear layer.
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
    /// Scratch memory; 32 MiB are enough for every algorithm on an H100.
    pub workspace: &'a Slice<u8>,
}

impl Cuda {
    /// `out = input weight^T + bias`, by cuBLASLt; sums in f32, and f32 operands are not rounded.
    ///
    /// The algorithm is chosen once per shape: by [`Self::tune_gemm`], or by cuBLASLt.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoCublas`](super::CudaError::NoCublas) where the library is not; if a slice has another
    /// length or is not aligned, or if the library or the driver refuses.
    pub fn gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<()> {
        let (shape, places) = self.check_gemm(arguments)?;
        if shape.m == 0 {
            return Ok(());
        }
        self.device.backend.gemm(shape, places)
    }

    /// Times all algorithms that cuBLASLt offers for this GEMM, and uses the fastest for its shape. `out` is
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
        self.device.backend.tune_gemm(shape, places)
    }

    fn check_gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<(GemmShape, GemmPlaces)> {
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
            GemmShape { m, n, k, with_bias: bias.is_some(), element: T::INDEX, workspace: workspace.len() };
        let places = GemmPlaces {
            input: input.address(),
            weight: weight.address(),
            bias: bias.map_or(0, Slice::address),
            out: out.address(),
            workspace: workspace.address(),
        };
        Ok((shape, places))
    }
}
