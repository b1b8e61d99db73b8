//! Windows over images whose channels are stored together, and pooling in them.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::op::{FrozenOp, apply_frozen};

/// The pixels that a convolution or a pool sees at each position; pairs are (rows, columns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window2d {
    /// Size.
    pub kernel: (usize, usize),
    /// Pixels from one position to the next.
    pub stride: usize,
    /// Rows above the image and columns left of it.
    pub pad_before: (usize, usize),
    /// Rows below the image and columns right of it.
    pub pad_after: (usize, usize),
}

impl Window2d {
    /// One pixel.
    pub const POINT: Self = Self::new((1, 1), 1, (0, 0));
    /// 3 x 3, keeping the size.
    pub const SAME_3: Self = Self::new((3, 3), 1, (1, 1));

    /// A window with the same padding on both sides.
    pub const fn new(kernel: (usize, usize), stride: usize, pad: (usize, usize)) -> Self {
        Self { kernel, stride, pad_before: pad, pad_after: pad }
    }

    /// Height and width of the result for an image of this height and width, or nothing if the kernel does not fit.
    pub fn output_size(&self, (height, width): (usize, usize)) -> Option<(usize, usize)> {
        let along = |len: usize, kernel: usize, pad: usize| {
            let free = len.checked_add(pad)?.checked_sub(kernel)?;
            (len > 0 && kernel > 0).then_some(free.checked_div(self.stride)? + 1)
        };
        let rows = along(height, self.kernel.0, self.pad_before.0.checked_add(self.pad_after.0)?)?;
        Some((rows, along(width, self.kernel.1, self.pad_before.1.checked_add(self.pad_after.1)?)?))
    }
}

/// The largest element of each window, channel by channel; NaN if one is.
///
/// # Shapes
///
/// `xs`: (B, H, W, C); result: (B, H', W', C).
///
/// # Errors
/// If the window does not fit or could see nothing but padding, or if the dtype is not f32, bf16 or f16.
pub fn max_pool2d(xs: &Tensor, window: Window2d) -> Result<Tensor> {
    pool(xs, window, false)
}

/// The mean of each window's elements inside the image, channel by channel.
///
/// # Shapes
///
/// `xs`: (B, H, W, C); result: (B, H', W', C).
///
/// # Errors
/// As [`max_pool2d`].
pub fn mean_pool2d(xs: &Tensor, window: Window2d) -> Result<Tensor> {
    pool(xs, window, true)
}

fn pool(xs: &Tensor, window: Window2d, mean: bool) -> Result<Tensor> {
    let (images, height, width, channels) = xs.dims4()?;
    let Window2d { kernel, pad_before, pad_after, .. } = window;
    let size = window
        .output_size((height, width))
        .filter(|_| pad_before.0.max(pad_after.0) < kernel.0 && pad_before.1.max(pad_after.1) < kernel.1);
    let Some(size) = size else {
        bail!("pool2d: expected images that hold a window {kernel:?}, got {:?}", xs.shape());
    };
    let op = Pool { window, mean, dims: [height, width, channels], size };
    apply_frozen(&op, xs.dtype(), (images, size.0, size.1, channels), xs)
}

struct Pool {
    window: Window2d,
    mean: bool,
    /// H, W and C.
    dims: [usize; 3],
    /// H' and W'.
    size: (usize, usize),
}

impl FrozenOp for Pool {
    const NAME: &'static str = "pool2d";

    fn forward<T: Element, O: Element>(&self, xs: &[T]) -> Vec<O> {
        let [height, width, channels] = self.dims;
        let line = self.size.1 * channels;
        let mut out = vec![O::zero(); xs.len() / (height * width).max(1) * self.size.0 * self.size.1];
        out.par_chunks_mut(line.max(1)).enumerate().for_each(|(line, out)| self.line(xs, line, out));
        out
    }
}

impl Pool {
    /// Writes line `line` of the result, counted over all images.
    fn line<T: Element, O: Element>(&self, xs: &[T], line: usize, out: &mut [O]) {
        let ([height, width, channels], (image, line)) =
            (self.dims, (line / self.size.0, line % self.size.0));
        let Window2d { kernel, stride, pad_before, .. } = self.window;
        let inside = |at: usize, kernel: usize, pad: usize, len: usize| {
            (at * stride).saturating_sub(pad)..(at * stride + kernel - pad).min(len)
        };
        let rows = inside(line, kernel.0, pad_before.0, height);
        let (mut result, mut next) = (vec![0f32; channels], vec![0f32; channels]);
        for (column, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
            let columns = inside(column, kernel.1, pad_before.1, width);
            let count = (rows.len() * columns.len()) as f32;
            let pixels = rows.clone().flat_map(|row| columns.clone().map(move |column| (row, column)));
            for (i, (row, column)) in pixels.enumerate() {
                let pixel = &xs[((image * height + row) * width + column) * channels..][..channels];
                if i == 0 {
                    T::widen(pixel, &mut result);
                    continue;
                }
                T::widen(pixel, &mut next);
                let both = result.iter_mut().zip(&next);
                if self.mean {
                    both.for_each(|(result, x)| *result += x);
                } else {
                    // A comparison that keeps a NaN of either side.
                    both.for_each(|(result, &x)| {
                        *result = if x <= *result || result.is_nan() { *result } else { x };
                    });
                }
            }
            if self.mean {
                result.iter_mut().for_each(|result| *result /= count);
            }
            O::narrow(&result, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::filled;

    /// candle's pools of (B, C, H, W), of images padded so that nothing changes.
    fn plain(xs: &Tensor, window: Window2d, mean: bool) -> Result<Tensor> {
        let (_, height, width, _) = xs.dims4()?;
        let Window2d { kernel, stride, pad_before, .. } = window;
        let (rows, columns) = pad_before;
        let xs = xs.permute((0, 3, 1, 2))?.contiguous()?;
        let ys = if mean {
            let padded_mean = |xs: &Tensor| {
                let padded = xs.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
                padded.avg_pool2d_with_stride(kernel, (stride, stride))
            };
            padded_mean(&xs)?.broadcast_div(&padded_mean(&Tensor::ones(
                (1, 1, height, width),
                DType::F32,
                xs.device(),
            )?)?)?
        } else {
            let padded = xs.pad_with_same(2, rows, rows)?.pad_with_same(3, columns, columns)?;
            padded.max_pool2d_with_stride(kernel, (stride, stride))?
        };
        ys.permute((0, 2, 3, 1))
    }

    #[test]
    fn agrees_with_candle() {
        for (height, width) in [(3, 3), (8, 5), (7, 4), (17, 17)] {
            let xs = filled((2, height, width, 5), 0.0);
            for window in [Window2d::new((3, 3), 2, (0, 0)), Window2d::SAME_3] {
                for mean in [false, true] {
                    let want = plain(&xs, window, mean).unwrap();
                    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-2)] {
                        let got = pool(&xs.to_dtype(dtype).unwrap(), window, mean).unwrap();
                        assert_eq!((got.dims(), got.dtype()), (want.dims(), dtype));
                        let apart = (got.to_dtype(DType::F32).unwrap() - &want).unwrap().abs().unwrap();
                        let apart = apart.max_all().unwrap().to_scalar::<f32>().unwrap();
                        assert!(apart < tolerance, "{height} {width} {window:?} {mean}: {apart}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_images_are_errors_and_nan_stays() {
        let shrink = Window2d::new((3, 3), 2, (0, 0));
        assert!(max_pool2d(&filled((1, 2, 8, 3), 0.0), shrink).is_err());
        assert!(mean_pool2d(&filled((1, 8, 8, 3), 0.0), Window2d::new((3, 3), 1, (3, 0))).is_err());
        for at in [0, 4, 8] {
            let mut values = vec![1f32; 9];
            values[at] = f32::NAN;
            let xs = Tensor::from_vec(values, (1, 3, 3, 1), &Device::Cpu).unwrap();
            let y = max_pool2d(&xs, shrink).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y[0].is_nan());
        }
    }
}
