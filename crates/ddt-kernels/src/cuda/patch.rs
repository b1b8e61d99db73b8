//! Latents to tokens.

use super::device::Cuda;
use super::element::Float;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::Slice;
use super::rows::check_len;

/// Sizes of a batch of latents and of the patches they are cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Images, B.
    pub images: usize,
    /// Channels, C.
    pub channels: usize,
    /// H, a multiple of P.
    pub height: usize,
    /// W, a multiple of P.
    pub width: usize,
    /// P.
    pub patch: usize,
}

impl Grid {
    /// Tokens of an image, L = (H / P) (W / P).
    pub fn tokens(&self) -> usize {
        (self.height / self.patch.max(1)) * (self.width / self.patch.max(1))
    }

    /// Elements of a token, C P^2.
    pub fn patch_dim(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Elements of the latents, B C H W.
    pub fn len(&self) -> usize {
        self.images * self.channels * self.height * self.width
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn check(&self, kernel: &'static str) -> Result<()> {
        let Self { channels, height, width, patch, .. } = *self;
        let whole = patch > 0 && height.is_multiple_of(patch) && width.is_multiple_of(patch);
        expect(
            whole && self.len() <= i32::MAX as usize && channels > 0,
            kernel,
            || "latents of fewer than 2^31 elements whose sides are multiples of the patch".into(),
            || format!("{self:?}"),
        )
    }

    /// How many times the batch `tokens` elements hold, 1 or `most`.
    pub(super) fn copies(&self, kernel: &'static str, tokens: usize, most: usize) -> Result<usize> {
        let copies = tokens / self.len().max(1);
        expect(
            tokens == copies * self.len() && (copies == 1 || copies == most || self.is_empty()),
            kernel,
            || format!("tokens of {} or {} elements", self.len(), most * self.len()),
            || tokens.to_string(),
        )?;
        Ok(copies.max(1))
    }

    pub(super) fn push(&self, values: &mut Arguments) {
        values.u32(self.images as u32).u32(self.channels as u32);
        values.u32(self.height as u32).u32(self.width as u32).u32(self.patch as u32);
    }
}

impl Cuda {
    /// Cuts latents (B, C, H, W) into patches: `out` is (R, L, C P^2), elements in the order channel, row,
    /// column, tokens in row-major order.
    ///
    /// R = B, or R = 2 B: then the second half is the first again, for both halves of guidance.
    ///
    /// # Errors
    ///
    /// If sizes do not divide, if a slice has another length or lies badly, or if the driver refuses.
    pub fn patchify<T: Float>(&self, latents: &Slice<f32>, grid: Grid, out: &Slice<T>) -> Result<()> {
        const NAME: &str = "patchify";
        grid.check(NAME)?;
        check_len(NAME, &self.device, ("latents", latents), grid.len())?;
        let copies = grid.copies(NAME, out.len(), 2)?;
        check_len(NAME, &self.device, ("tokens", out), copies * grid.len())?;
        let mut values = Arguments::default();
        values.address(latents.address()).address(out.address());
        grid.push(&mut values);
        values.u32(copies as u32);
        self.each(NAME, kernels::PATCHIFY[T::INDEX], grid.len(), values)
    }
}
