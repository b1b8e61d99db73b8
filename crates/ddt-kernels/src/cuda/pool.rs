//! Pools, and results side by side.

use super::device::Cuda;
use super::element::Float;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::Slice;
use super::rows::check_len;
use super::window::Window;

/// What [`Cuda::pool`] works on: images whose channels stand together, (B, H, W, C).
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
    /// What is seen at each position; its padding is less than its size.
    pub window: Window,
    /// The mean of what lies inside the image, rather than the largest.
    pub mean: bool,
    /// The result, (B, H', W', C).
    pub out: &'a Slice<T>,
}

/// What [`Cuda::columns`] works on.
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
    /// The largest or the mean of each window; padding counts for neither, and NaN stays.
    ///
    /// # Errors
    ///
    /// If sizes do not fit, if a slice has another length or lies badly, or if the driver refuses.
    pub fn pool<T: Float>(&self, arguments: &Pool<'_, T>) -> Result<()> {
        const NAME: &str = "pool";
        let Pool { x, height, width, channels, window, mean, out } = *arguments;
        let result = window.check(NAME, (height, width))?;
        expect(
            channels.is_multiple_of(T::LANES) && height * width * channels > 0,
            NAME,
            || format!("images whose channels are a multiple of {}", T::LANES),
            || format!("{height} x {width} x {channels}"),
        )?;
        expect(
            window.pad_rows < window.height && window.pad_columns < window.width,
            NAME,
            || "a window that is larger than its padding".into(),
            || format!("{window:?}"),
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
    ///
    /// If sizes do not fit, if a slice has another length or lies badly, or if the driver refuses.
    pub fn columns<T: Float>(&self, arguments: &Columns<'_, T>) -> Result<()> {
        const NAME: &str = "columns";
        let Columns { x, width, bias, relu, out, stride, first } = *arguments;
        let whole = [width, stride, first].into_iter().all(|it| it.is_multiple_of(T::LANES));
        expect(
            whole && width > 0 && first + width <= stride,
            NAME,
            || format!("columns of the result in multiples of {}", T::LANES),
            || format!("{width} from {first} of {stride}"),
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
