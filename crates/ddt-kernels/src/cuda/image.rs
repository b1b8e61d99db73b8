//! Between the ways that images lie in memory and the sizes they have.

use super::device::Cuda;
use super::element::Float;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::Slice;
use super::rows::check_len;

/// Sizes of images that change how they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// B.
    pub images: usize,
    /// C.
    pub channels: usize,
    /// P, the positions of an image.
    pub positions: usize,
    /// Elements of a position where channels stand together: C, and zeros behind them.
    pub wide: usize,
}

impl Layout {
    fn apart(&self) -> usize {
        self.images * self.channels * self.positions
    }

    fn together(&self) -> usize {
        self.images * self.positions * self.wide
    }

    fn check(&self, kernel: &'static str) -> Result<()> {
        expect(
            self.channels <= self.wide && self.together() <= u32::MAX as usize,
            kernel,
            || "positions as wide as the channels or wider, of fewer than 2^32 elements".into(),
            || format!("{self:?}"),
        )
    }

    fn push(&self, values: &mut Arguments) {
        values.u32(self.images as u32).u32(self.channels as u32);
        values.u32(self.positions as u32).u32(self.wide as u32);
    }
}

impl Cuda {
    /// (B, C, P) to (B, P, wide), times `scale`.
    ///
    /// # Errors
    ///
    /// If a slice has another length or lies badly, or if the driver refuses.
    pub fn channels_last<T: Float>(
        &self,
        x: &Slice<f32>,
        layout: Layout,
        scale: f32,
        out: &Slice<T>,
    ) -> Result<()> {
        const NAME: &str = "channels_last";
        layout.check(NAME)?;
        check_len(NAME, &self.device, ("x", x), layout.apart())?;
        check_len(NAME, &self.device, ("out", out), layout.together())?;
        let mut values = Arguments::default();
        values.address(x.address()).address(out.address());
        layout.push(&mut values);
        values.f32(scale);
        self.each(NAME, kernels::CHANNELS_LAST[T::INDEX], layout.together(), values)
    }

    /// (B, P, wide) to (B, C, P): what lies behind the channels is left out.
    ///
    /// # Errors
    ///
    /// If a slice has another length or lies badly, or if the driver refuses.
    pub fn channels_first<T: Float>(&self, x: &Slice<T>, layout: Layout, out: &Slice<f32>) -> Result<()> {
        const NAME: &str = "channels_first";
        layout.check(NAME)?;
        check_len(NAME, &self.device, ("x", x), layout.together())?;
        check_len(NAME, &self.device, ("out", out), layout.apart())?;
        let mut values = Arguments::default();
        values.address(x.address()).address(out.address());
        layout.push(&mut values);
        self.each(NAME, kernels::CHANNELS_FIRST[T::INDEX], layout.apart(), values)
    }

    /// Each position twice in either direction: (B, H, W, C) to (B, 2 H, 2 W, C).
    ///
    /// # Errors
    ///
    /// If channels are no multiple of 8 (bf16) or 4 (f32), if a slice has another length or lies badly, or if
    /// the driver refuses.
    pub fn double_size<T: Float>(
        &self,
        x: &Slice<T>,
        (height, width): (usize, usize),
        channels: usize,
        out: &Slice<T>,
    ) -> Result<()> {
        const NAME: &str = "double_size";
        expect(
            channels.is_multiple_of(T::LANES) && height * width * channels > 0,
            NAME,
            || format!("channels that are a multiple of {}", T::LANES),
            || format!("{height} x {width} x {channels}"),
        )?;
        let images = x.len() / (height * width * channels);
        check_len(NAME, &self.device, ("x, whole images", x), images * height * width * channels)?;
        check_len(NAME, &self.device, ("out", out), 4 * x.len())?;
        let mut values = Arguments::default();
        values.address(x.address()).address(out.address()).u32(images as u32);
        values.u32(height as u32).u32(width as u32).u32(channels as u32);
        self.each(NAME, kernels::DOUBLE_SIZE[T::INDEX], out.len() / T::LANES, values)
    }

    /// `x += y`, where `y` is f32 whatever `x` is.
    ///
    /// # Errors
    ///
    /// If lengths differ or are no multiple of 8 (bf16) or 4 (f32), if a slice lies badly, or if the driver
    /// refuses.
    pub fn accumulate<T: Float>(&self, x: &Slice<T>, y: &Slice<f32>) -> Result<()> {
        const NAME: &str = "accumulate";
        let parts = x.len() / T::LANES;
        check_len(NAME, &self.device, ("x, whole parts of 16 bytes", x), parts * T::LANES)?;
        check_len(NAME, &self.device, ("y", y), x.len())?;
        let mut values = Arguments::default();
        values.address(x.address()).address(y.address()).u32(parts as u32);
        self.each(NAME, kernels::ACCUMULATE[T::INDEX], parts, values)
    }
}
