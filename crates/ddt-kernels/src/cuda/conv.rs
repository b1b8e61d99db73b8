//! Convolution.

use super::activation::{Activation, AddRows};
use super::device::Cuda;
use super::error::{Result, expect};
use super::gemm::Gemm;
use super::kernels;
use super::launch::Arguments;
use super::memory::{Float, Slice};
use super::rows::{Rows, check_len, check_slice};
use super::shapes::{ConvShape, Window};

const NAME: &str = "conv";

/// Arguments of [`Cuda::conv`]: channels-last images, (B, H, W, C).
#[derive(Debug, Clone, Copy)]
pub struct Conv<'a, T> {
    /// (B, H, W, C).
    pub input: &'a Slice<T>,
    /// B.
    pub images: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// C, a multiple of 8 (bf16) or 4 (f32).
    pub channels: usize,
    /// The window.
    pub window: Window,
    /// (O, window's rows, window's columns, C), with O a multiple as C is.
    pub weight: &'a Slice<T>,
    /// (O).
    pub bias: Option<&'a Slice<T>>,
    /// The result, (B, H', W', O).
    pub out: &'a Slice<T>,
    /// Scratch for gathered windows, [`Conv::scratch_bytes`] or more: windows that do not fit are processed in turn.
    /// cuDNN uses it too, and is skipped where it needs more.
    pub scratch: &'a Slice<u8>,
    /// As [`Gemm::workspace`].
    pub workspace: &'a Slice<u8>,
}

/// How a convolution was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvBy {
    /// NVIDIA's library.
    Cudnn,
    /// Gathered windows, or, of one position, none, multiplied.
    Products,
}

impl<T: Float> Conv<'_, T> {
    /// The least scratch memory for a window over so many channels: one position at a time.
    pub fn scratch_bytes(window: Window, channels: usize) -> usize {
        window.taps() * channels * size_of::<T>()
    }
}

impl Cuda {
    /// `out[y, x] = sum over taps of weight[tap] input[y stride + tap - pad] + bias`; sums in f32, and f32
    /// operands are not rounded.
    ///
    /// By cuDNN where its library is and knows the shape; otherwise windows are gathered and multiplied. It says
    /// which. Not while capturing.
    ///
    /// # Errors
    ///
    /// If a slice has another length or is not aligned, if scratch memory is less than one position takes, or if a
    /// library or the driver refuses.
    pub fn conv<T: Float>(&self, arguments: &Conv<'_, T>) -> Result<ConvBy> {
        let shape = self.check_conv(arguments)?;
        if self.conv_by_cudnn(arguments, shape)? {
            return Ok(ConvBy::Cudnn);
        }
        self.lower(arguments, shape)?;
        Ok(ConvBy::Products)
    }

    /// Whether cuDNN did it.
    fn conv_by_cudnn<T: Float>(&self, arguments: &Conv<'_, T>, shape: ConvShape) -> Result<bool> {
        let Conv { input, weight, bias, out, scratch, .. } = *arguments;
        let places = [input, weight, out].map(Slice::address);
        // A 1 x 1 window is a GEMM, and beyond that many elements cuDNN is not reliable.
        let fits = input.len().max(out.len()) <= i32::MAX as usize;
        let convolves = shape.positions() > 0 && shape.window != Window::POINT && fits;
        let done = convolves && self.device.backend.conv(shape, places, scratch.address())?;
        if done && let Some(bias) = bias {
            let (addend, activation) = (Some(Rows::one(bias)), Activation::None);
            self.add_rows(&AddRows { x: out, width: shape.out_channels, addend, activation, out })?;
        }
        Ok(done)
    }

    /// [`Self::conv`] by gathered windows, whatever libraries there are.
    ///
    /// # Errors
    ///
    /// As [`Self::conv`].
    pub fn conv_lowered<T: Float>(&self, arguments: &Conv<'_, T>) -> Result<()> {
        self.lower(arguments, self.check_conv(arguments)?)
    }

    fn lower<T: Float>(&self, arguments: &Conv<'_, T>, shape: ConvShape) -> Result<()> {
        let Conv { input, weight, bias, out, scratch, workspace, .. } = *arguments;
        let (positions, depth) = (shape.positions(), shape.depth());
        let multiply = |input: &Slice<T>, out: &Slice<T>| {
            self.gemm(&Gemm { input, weight, bias, out, depth, workspace })
        };
        if shape.window == Window::POINT {
            return multiply(input, out);
        }
        let scratch = scratch.cast::<T>()?;
        let at_once = (scratch.len() / depth).min(positions);
        for first in (0..positions).step_by(at_once.max(1)) {
            let count = at_once.min(positions - first);
            let gathered = scratch.sub(0..count * depth)?;
            let mut values = Arguments::default();
            values.address(input.address()).address(gathered.address());
            values.u32(first as u32).u32(count as u32).u32(shape.channels as u32);
            shape.window.push(&mut values, shape.image, shape.result);
            self.each(NAME, kernels::GATHER[T::INDEX], count * depth / T::LANES, values)?;
            let to = first * shape.out_channels..(first + count) * shape.out_channels;
            multiply(&gathered, &out.sub(to)?)?;
        }
        Ok(())
    }

    fn check_conv<T: Float>(&self, arguments: &Conv<'_, T>) -> Result<ConvShape> {
        let Conv { input, images, height, width, channels, window, weight, bias, out, scratch, .. } =
            *arguments;
        let result = window.check(NAME, (height, width))?;
        let depth = window.taps() * channels;
        let out_channels = weight.len() / depth.max(1);
        let whole = |channels: usize| channels > 0 && channels.is_multiple_of(T::LANES);
        expect(
            whole(channels) && whole(out_channels),
            NAME,
            || format!("channels that are multiples of {}", T::LANES),
            || format!("{channels} channels to {out_channels}"),
        )?;
        check_len(NAME, &self.device, ("input", input), images * height * width * channels)?;
        check_len(NAME, &self.device, ("weight", weight), out_channels * depth)?;
        bias.map_or(Ok(()), |bias| check_len(NAME, &self.device, ("bias", bias), out_channels))?;
        let shape = ConvShape {
            images,
            image: (height, width),
            result,
            channels,
            out_channels,
            window,
            element: T::INDEX,
            scratch: scratch.len(),
        };
        check_len(NAME, &self.device, ("out", out), shape.positions() * out_channels)?;
        expect(
            images * height * width <= i32::MAX as usize && shape.positions() <= i32::MAX as usize,
            NAME,
            || "fewer than 2^31 positions".into(),
            || format!("{images} images of {height} x {width}: use a smaller batch"),
        )?;
        check_slice(NAME, &self.device, scratch)?;
        let least = Conv::<T>::scratch_bytes(window, channels);
        expect(
            window == Window::POINT || scratch.len() >= least,
            NAME,
            || format!("{least} bytes of scratch memory or more"),
            || scratch.len().to_string(),
        )?;
        Ok(shape)
    }
}
