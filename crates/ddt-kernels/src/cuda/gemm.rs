//! GEMM, and convolution by a library or as GEMMs of gathered windows.

use super::activation::{Activation, AddRows};
use super::backend::{ConvShape, GemmPlaces, GemmShape, Window};
use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::Arguments;
use super::memory::{Float, Slice};
use super::rows::{Rows, check_len, check_slice};

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
    /// A shape is timed once: its algorithm is kept in the user's cache folder, for this device and version of cuBLASLt.
    /// With `DDT_TUNE=0` nothing is timed or read, and cuBLASLt chooses.
    ///
    /// # Errors
    /// As [`Self::gemm`].
    pub fn tune_gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<()> {
        let (shape, places) = self.check_gemm(arguments)?;
        if shape.m == 0 {
            return Ok(());
        }
        self.device.backend.tune_gemm(shape, places)
    }

    fn check_gemm<T: Float>(&self, arguments: &Gemm<'_, T>) -> Result<(GemmShape, GemmPlaces)> {
        const NAME: &str = "gemm";
        let Gemm { input, weight, bias, out, depth: k, workspace } = *arguments;
        expect(
            k > 0 && !weight.is_empty(),
            NAME,
            "a depth above 0 and a weight",
            format_args!("depth {k} and {} elements", weight.len()),
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

const CONV: &str = "conv";

impl Cuda {
    /// `out[y, x] = sum over taps of weight[tap] input[y stride + tap - pad] + bias`; sums in f32, and f32
    /// operands are not rounded.
    ///
    /// By cuDNN where its library is and knows the shape; otherwise windows are gathered and multiplied. It says
    /// which. Not while capturing.
    ///
    /// # Errors
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
            self.each(CONV, kernels::GATHER[T::INDEX], count * depth / T::LANES, values)?;
            let to = first * shape.out_channels..(first + count) * shape.out_channels;
            multiply(&gathered, &out.sub(to)?)?;
        }
        Ok(())
    }

    fn check_conv<T: Float>(&self, arguments: &Conv<'_, T>) -> Result<ConvShape> {
        let Conv { input, images, height, width, channels, window, weight, bias, out, scratch, .. } =
            *arguments;
        let result = window.check(CONV, (height, width))?;
        let depth = window.taps() * channels;
        let out_channels = weight.len() / depth.max(1);
        let whole = |channels: usize| channels > 0 && channels.is_multiple_of(T::LANES);
        expect(
            whole(channels) && whole(out_channels),
            CONV,
            format_args!("channels that are multiples of {}", T::LANES),
            format_args!("{channels} channels to {out_channels}"),
        )?;
        check_len(CONV, &self.device, ("input", input), images * height * width * channels)?;
        check_len(CONV, &self.device, ("weight", weight), out_channels * depth)?;
        bias.map_or(Ok(()), |bias| check_len(CONV, &self.device, ("bias", bias), out_channels))?;
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
        check_len(CONV, &self.device, ("out", out), shape.positions() * out_channels)?;
        expect(
            images * height * width <= i32::MAX as usize && shape.positions() <= i32::MAX as usize,
            CONV,
            "fewer than 2^31 positions",
            format_args!("{images} images of {height} x {width}: use a smaller batch"),
        )?;
        check_slice(CONV, &self.device, scratch)?;
        let least = Conv::<T>::scratch_bytes(window, channels);
        expect(
            window == Window::POINT || scratch.len() >= least,
            CONV,
            format_args!("{least} bytes of scratch memory or more"),
            scratch.len(),
        )?;
        Ok(shape)
    }
}
