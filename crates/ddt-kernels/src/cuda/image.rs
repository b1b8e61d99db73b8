//! Images: layouts, sizes, pools, and results side by side.

use super::backend::Window;
use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::{Float, Slice};
use super::rows::check_len;

/// Sizes of images whose layout changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// B.
    pub images: usize,
    /// C.
    pub channels: usize,
    /// P, the positions of an image.
    pub positions: usize,
    /// Elements of a position in the channels-last layout: C, then zeros.
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
            "positions as wide as the channels or wider, of fewer than 2^32 elements",
            format_args!("{self:?}"),
        )
    }

    fn push(&self, values: &mut Arguments) {
        values.u32(self.images as u32).u32(self.channels as u32);
        values.u32(self.positions as u32).u32(self.wide as u32);
    }
}

/// Arguments of [`Cuda::pool`]: channels-last images, (B, H, W, C).
#[derive(Debug, Clone, Copy)]
pub struct Pool<'a, T> {
    /// (B, H, W, C).
    pub x: &'a Slice<T>,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// C, a multiple of 8 (bf16) or 4 (f32).
    pub channels: usize,
    /// The window; its padding is less than its size.
    pub window: Window,
    /// The mean of the positions inside the image, rather than the largest.
    pub mean: bool,
    /// The result, (B, H', W', C).
    pub out: &'a Slice<T>,
}

/// Arguments of [`Cuda::columns`].
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a, T> {
    /// (T, width).
    pub x: &'a Slice<T>,
    /// A multiple of 8 (bf16) or 4 (f32).
    pub width: usize,
    /// Added to each row, (width).
    pub bias: Option<&'a Slice<T>>,
    /// Whether what is below 0 becomes 0.
    pub relu: bool,
    /// (T, stride); not `x`.
    pub out: &'a Slice<T>,
    /// A multiple as the width is.
    pub stride: usize,
    /// The first column that is written, a multiple as the width is.
    pub first: usize,
}

impl Cuda {
    /// (B, C, P) to (B, P, wide), times `scale`.
    ///
    /// # Errors
    /// If a slice has another length or is not aligned, or if the driver refuses.
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

    /// (B, P, wide) to (B, C, P): elements behind the channels are left out.
    ///
    /// # Errors
    /// If a slice has another length or is not aligned, or if the driver refuses.
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
    /// If channels are no multiple of 8 (bf16) or 4 (f32), if a slice has another length or is not aligned, or if
    /// the driver refuses.
    pub fn upsample<T: Float>(
        &self,
        x: &Slice<T>,
        (height, width): (usize, usize),
        channels: usize,
        out: &Slice<T>,
    ) -> Result<()> {
        const NAME: &str = "upsample";
        expect(
            channels.is_multiple_of(T::LANES) && height * width * channels > 0,
            NAME,
            format_args!("channels that are a multiple of {}", T::LANES),
            format_args!("{height} x {width} x {channels}"),
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
    /// If lengths differ or are no multiple of 8 (bf16) or 4 (f32), if a slice is not aligned, or if the driver
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

    /// The largest or the mean of each window; padding counts for neither, and NaN stays.
    ///
    /// # Errors
    /// If sizes do not fit, if a slice has another length or is not aligned, or if the driver refuses.
    pub fn pool<T: Float>(&self, arguments: &Pool<'_, T>) -> Result<()> {
        const NAME: &str = "pool";
        let Pool { x, height, width, channels, window, mean, out } = *arguments;
        let result = window.check(NAME, (height, width))?;
        expect(
            channels.is_multiple_of(T::LANES) && height * width * channels > 0,
            NAME,
            format_args!("images whose channels are a multiple of {}", T::LANES),
            format_args!("{height} x {width} x {channels}"),
        )?;
        expect(
            window.pad_rows < window.height && window.pad_columns < window.width,
            NAME,
            "a window that is larger than its padding",
            format_args!("{window:?}"),
        )?;
        let images = x.len() / (height * width * channels);
        check_len(NAME, &self.device, ("x, whole images", x), images * height * width * channels)?;
        let positions = images * result.0 * result.1;
        check_len(NAME, &self.device, ("out", out), positions * channels)?;
        let mut values = Arguments::default();
        values.address(x.address()).address(out.address());
        values.u32(positions as u32).u32(channels as u32).u32(u32::from(mean));
        window.push(&mut values, (height, width), result);
        self.each(NAME, kernels::POOL[T::INDEX], out.len() / T::LANES, values)
    }

    /// `out[t, first + c] = act(x[t, c] + bias[c])`.
    ///
    /// # Errors
    /// If sizes do not fit, if a slice has another length or is not aligned, or if the driver refuses.
    pub fn columns<T: Float>(&self, arguments: &Columns<'_, T>) -> Result<()> {
        const NAME: &str = "columns";
        let Columns { x, width, bias, relu, out, stride, first } = *arguments;
        let whole = [width, stride, first].into_iter().all(|it| it.is_multiple_of(T::LANES));
        expect(
            whole && width > 0 && first + width <= stride,
            NAME,
            format_args!("columns of the result in multiples of {}", T::LANES),
            format_args!("{width} from {first} of {stride}"),
        )?;
        let tokens = x.len() / width;
        check_len(NAME, &self.device, ("x, whole rows", x), tokens * width)?;
        check_len(NAME, &self.device, ("out", out), tokens * stride)?;
        bias.map_or(Ok(()), |bias| check_len(NAME, &self.device, ("bias", bias), width))?;
        let mut values = Arguments::default();
        values.address(x.address()).address(bias.map_or(0, Slice::address));
        values.address(out.address() + (first * size_of::<T>()) as u64);
        values.u32(tokens as u32).u32(width as u32).u32(stride as u32);
        values.u32(u32::from(bias.is_some()) | u32::from(relu) << 1);
        self.each(NAME, kernels::COLUMNS[T::INDEX], x.len() / T::LANES, values)
    }
}
