//! Two-dimensional convolution of images that lie as (B, H, W, C).

use std::borrow::Cow;

use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use super::epilogue::Epilogue;
use super::factor::Factor;
use super::is_ours;
use super::linear::finish_candle;
use super::tile::Runs;

/// What a convolution sees: kernel and zero padding as (rows, columns), and one stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns.
    pub kernel: (usize, usize),
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Zeros on either side of the rows and of the columns.
    pub pad: (usize, usize),
}

impl Window {
    /// One pixel.
    pub const POINT: Self = Self { kernel: (1, 1), stride: 1, pad: (0, 0) };
    /// 3x3, keeping the size.
    pub const SAME: Self = Self { kernel: (3, 3), stride: 1, pad: (1, 1) };
    /// 3x3, halving the size, padded.
    pub(crate) const HALVE: Self = Self { kernel: (3, 3), stride: 2, pad: (1, 1) };

    /// Height and width of the result, or an error if the kernel does not fit.
    pub(super) fn out_size(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let along = |len: usize, kernel: usize, pad: usize| {
            (len + 2 * pad).checked_sub(kernel).filter(|_| len > 0).map(|free| free / self.stride + 1)
        };
        let size = along(height, self.kernel.0, self.pad.0).zip(along(width, self.kernel.1, self.pad.1));
        let Some(size) = size else {
            let (rows, columns) = self.kernel;
            bail!("expected images of at least {rows} x {columns}, got {height} x {width}");
        };
        Ok(size)
    }

    /// Pads images `(B, H, W, C)`, whose pixels' windows are then runs of numbers.
    pub(super) fn lower<'a>(
        &self,
        xs: &'a [f32],
        (b, height, width, channels): (usize, usize, usize, usize),
    ) -> Result<Lowered<'a>> {
        let size = self.out_size((height, width))?;
        let padded = (height + 2 * self.pad.0, width + 2 * self.pad.1);
        let line = padded.1 * channels;
        let xs = if self.pad == (0, 0) || xs.is_empty() {
            Cow::Borrowed(xs)
        } else {
            let mut lines = vec![0f32; b * padded.0 * line];
            lines.par_chunks_mut(line).enumerate().for_each(|(i, out)| {
                let (image, y) = (i / padded.0, i % padded.0);
                if let Some(y) = y.checked_sub(self.pad.0).filter(|&y| y < height) {
                    let source = &xs[(image * height + y) * width * channels..][..width * channels];
                    out[self.pad.1 * channels..][..source.len()].copy_from_slice(source);
                }
            });
            Cow::Owned(lines)
        };
        let runs = Runs { count: self.kernel.0, len: self.kernel.1 * channels, step: line };
        Ok(Lowered { xs, runs, size, stride: self.stride, channels, line, lines: padded.0 })
    }
}

/// Padded images, and where each pixel of the result finds its window.
pub(super) struct Lowered<'a> {
    pub(super) xs: Cow<'a, [f32]>,
    pub(super) runs: Runs,
    pub(super) size: (usize, usize),
    stride: usize,
    channels: usize,
    /// Numbers in a padded line.
    line: usize,
    /// Lines of a padded image.
    lines: usize,
}

impl Lowered<'_> {
    /// Where the first run of pixel `row`, counted through all images, begins.
    #[inline(always)]
    pub(super) fn start(&self, row: usize) -> usize {
        let (image, pixel) = (row / (self.size.0 * self.size.1), row % (self.size.0 * self.size.1));
        let (y, x) = (pixel / self.size.1, pixel % self.size.1);
        (image * self.lines + y * self.stride) * self.line + x * self.stride * self.channels
    }
}

/// `epilogue(conv(x) + bias + residual)`: `(B, H, W, in) -> (B, H', W', out)`.
#[derive(Debug, Clone)]
pub(crate) struct Conv {
    weights: Weights,
    window: Window,
}

#[derive(Debug, Clone)]
enum Weights {
    Ours(Factor),
    Candle { weight: Tensor, bias: Option<Tensor> },
}

impl Conv {
    /// From `weight: (out, in, rows, columns)` and `bias: (out)`.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Self> {
        let (_, _, rows, columns) = weight.dims4()?;
        if (rows, columns) != window.kernel {
            bail!("expected a kernel {:?}, got {:?}", window.kernel, weight.shape());
        }
        let weights = if is_ours(weight) {
            let matrix = weight.permute((0, 2, 3, 1))?.flatten_from(1)?; // (out, rows columns in)
            Weights::Ours(Factor::new(&matrix, bias)?)
        } else {
            Weights::Candle { weight: weight.clone(), bias: bias.cloned() }
        };
        Ok(Self { weights, window })
    }

    /// Reads `weight: (out, in, rows, columns)` and `bias: (out)`.
    pub(crate) fn read((inp, out): (usize, usize), window: Window, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((out, inp, window.kernel.0, window.kernel.1), "weight")?;
        Self::new(&weight, Some(&vb.get(out, "bias")?), window)
    }

    /// Reads `weight` alone.
    pub(crate) fn read_no_bias((inp, out): (usize, usize), window: Window, vb: VarBuilder) -> Result<Self> {
        Self::new(&vb.get((out, inp, window.kernel.0, window.kernel.1), "weight")?, None, window)
    }

    pub(crate) fn forward(&self, xs: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        self.run(xs, None, epilogue)
    }

    /// As [`forward`](Self::forward), adding a residual of the result's shape before the activation.
    pub(crate) fn forward_add(&self, xs: &Tensor, residual: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        self.run(xs, Some(residual), epilogue)
    }

    fn run(&self, xs: &Tensor, residual: Option<&Tensor>, epilogue: Epilogue) -> Result<Tensor> {
        match &self.weights {
            Weights::Ours(factor) => factor.multiply(xs, Some(self.window), (residual, epilogue)),
            Weights::Candle { weight, bias } => {
                let (_, height, width, _) = xs.dims4()?;
                self.window.out_size((height, width))?;
                let (rows, columns) = self.window.pad;
                let xs = xs.permute((0, 3, 1, 2))?.contiguous()?; // (B, in, H, W)
                let xs = xs.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
                let ys = xs.conv2d(weight, 0, self.window.stride, 1, 1)?.permute((0, 2, 3, 1))?;
                finish_candle(ys, bias.as_ref(), (residual, epilogue))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};
    use proptest::prelude::*;

    const WIDE: Window = Window { kernel: (1, 7), stride: 1, pad: (0, 3) };
    const TALL: Window = Window { kernel: (7, 1), stride: 1, pad: (3, 0) };
    const SHRINK: Window = Window { kernel: (3, 3), stride: 2, pad: (0, 0) };

    fn both(inp: usize, out: usize, window: Window) -> [Conv; 2] {
        let weight = random(3, (out, inp, window.kernel.0, window.kernel.1));
        let bias = random(4, out);
        let candle = Weights::Candle { weight: weight.clone(), bias: Some(bias.clone()) };
        [Conv::new(&weight, Some(&bias), window).unwrap(), Conv { weights: candle, window }]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_candle(
            (b, inp, out) in (1usize..4, 1usize..6, 1usize..40),
            (h, w) in (3usize..12, 3usize..12),
            window in prop::sample::select(vec![
                Window::POINT, Window::SAME, Window::HALVE, WIDE, TALL, SHRINK,
            ]),
        ) {
            let [ours, candle] = both(inp, out, window);
            let xs = random(7, (b, h, w, inp));
            let want = candle.forward(&xs, Epilogue::None).unwrap();
            let got = ours.forward(&xs, Epilogue::None).unwrap();
            prop_assert_eq!(got.dims(), want.dims());
            prop_assert!(rel_rms(&got, &want) < 1e-5);
            let residual = random(8, want.dims());
            let want = candle.forward_add(&xs, &residual, Epilogue::Relu).unwrap();
            let got = ours.forward_add(&xs, &residual, Epilogue::Relu).unwrap();
            prop_assert!(rel_rms(&got, &want) < 1e-5);
        }
    }

    #[test]
    fn a_view_is_convolved_as_what_it_shows() {
        let [ours, candle] = both(5, 2, Window::SAME);
        let xs = random(1, (2, 5, 6, 7)).permute((0, 2, 3, 1)).unwrap();
        let (got, want) = (ours.forward(&xs, Epilogue::None), candle.forward(&xs, Epilogue::None));
        assert!(rel_rms(&got.unwrap(), &want.unwrap()) < 1e-5);
    }

    #[test]
    fn wrong_shapes_are_errors() {
        for conv in both(4, 2, SHRINK) {
            for shape in [vec![1, 8, 8, 3], vec![1, 2, 8, 4], vec![1, 0, 8, 4], vec![8, 8, 4]] {
                assert!(conv.forward(&random(1, shape.clone()), Epilogue::None).is_err(), "{shape:?}");
            }
            let (xs, residual) = (random(1, (1, 5, 5, 4)), random(2, (1, 2, 3, 2)));
            assert!(conv.forward_add(&xs, &residual, Epilogue::None).is_err());
        }
        assert!(Conv::new(&random(1, (2, 4, 3, 3)), None, WIDE).is_err());
    }
}
