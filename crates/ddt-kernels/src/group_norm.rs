//! Group normalisation of images whose channels are stored together.

use candle_core::{DType, Result, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffers::{Fill, Fresh, Part};
use crate::cpu::dispatch;
use crate::cpu::element::Element;
use crate::cpu::lanes::update;
use crate::cpu::pointwise::{Activation, Pointwise};
use crate::op::{FrozenOp, apply_frozen, check_shape};

const NAME: &str = "group_norm";

/// Elements of one task, about; fixed, so that partial sums do not depend on the machine.
const TASK: usize = 16 * 1024;
/// Pixels of one task, at most: so many are summed in f32.
const TASK_PIXELS: usize = 256;

/// Settings of [`group_norm`].
#[derive(Debug, Clone, Copy)]
pub struct GroupNormOptions {
    /// Groups of channels, each normalised as one.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Follows the norm.
    pub activation: Activation,
    /// Of the result: that of the images, or bf16 where they are f32.
    pub dtype: DType,
}

/// Group normalisation, followed by an activation.
///
/// ```text
/// y = activation((x - mean) / sqrt(var + eps) * weight + bias),   mean, var over (H, W, C / groups)
/// ```
///
/// Moments are f64 over blocks of f32 sums; arithmetic is f32. Not differentiable.
///
/// # Shapes
///
/// `xs`: (B, H, W, C), `weight`, `bias`: (C), C a multiple of `groups`; result: (B, H, W, C).
///
/// # Errors
/// If a shape is another or has no pixels, if `xs` is not on the CPU, or if its dtype is not f32, bf16 or f16 or the
/// result's another.
pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, options: &GroupNormOptions) -> Result<Tensor> {
    let GroupNormOptions { groups, dtype, .. } = *options;
    let &[_, height, width, channels] = xs.dims() else {
        bail!("{NAME}: expected images (B, H, W, C), got {:?}", xs.shape());
    };
    if height * width == 0 {
        bail!("{NAME}: expected images of at least one pixel, got {:?}", xs.shape());
    }
    if groups == 0 || channels == 0 || !channels.is_multiple_of(groups) {
        bail!("{NAME}: expected channels divisible into {groups} groups, got {channels}");
    }
    check_shape(NAME, "weight", weight, &[channels])?;
    check_shape(NAME, "bias", bias, &[channels])?;
    let wide = |it: &Tensor| it.to_dtype(DType::F32)?.to_vec1();
    let op =
        GroupNorm { weight: wide(weight)?, bias: wide(bias)?, pixels: height * width, options: *options };
    apply_frozen(&op, dtype, xs.shape(), xs)
}

struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Of an image.
    pixels: usize,
    options: GroupNormOptions,
}

impl FrozenOp for GroupNorm {
    const NAME: &'static str = NAME;

    fn forward<T: Element, O: Element>(&self, xs: &[T]) -> Vec<O> {
        let GroupNormOptions { groups, activation, .. } = self.options;
        let (image, channels) = (self.pixels * self.weight.len(), self.weight.len());
        let task = channels * (TASK / channels).clamp(1, TASK_PIXELS);
        // Every image is cut alike.
        let per_image = image.div_ceil(task);
        let tasks: Vec<&[T]> = xs.chunks(image).flat_map(|xs| xs.chunks(task)).collect();
        let moments: Vec<Vec<Moments>> =
            tasks.par_iter().map(|xs| dispatch(Measure { xs, channels, groups })).collect();
        let maps: Vec<_> = moments.chunks(per_image).map(|tasks| self.map(tasks)).collect();
        let mut out = Fresh::new(xs.len());
        let outs: Vec<Part<'_, O>> = out.parts(tasks.iter().map(|it| it.len())).collect();
        tasks.into_par_iter().zip(outs).enumerate().for_each(|(at, (xs, out))| {
            let (scale, shift) = &maps[at / per_image];
            dispatch(Apply { xs, scale, shift, activation, out: out.open() });
        });
        out.finish()
    }
}

impl GroupNorm {
    /// Scale and shift of each channel of an image, from the moments of its tasks.
    fn map(&self, tasks: &[Vec<Moments>]) -> (Vec<f32>, Vec<f32>) {
        let (mut scale, mut shift) = (self.weight.clone(), self.bias.clone());
        let size = scale.len() / self.options.groups;
        let channels = scale.chunks_exact_mut(size).zip(shift.chunks_exact_mut(size)).enumerate();
        for (group, (scale, shift)) in channels {
            let all = tasks.iter().fold(Moments::default(), |all, task| all.joined(task[group]));
            let rstd = 1.0 / (all.squares / all.count + self.options.eps).sqrt();
            for (scale, shift) in scale.iter_mut().zip(shift) {
                let factor = f64::from(*scale) * rstd;
                *shift = (f64::from(*shift) - all.mean * factor) as f32;
                *scale = factor as f32;
            }
        }
        (scale, shift)
    }
}

/// Count, mean, and sum of squared distances from the mean, of some numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Of both (Chan, Golub and LeVeque, 1979).
    fn joined(self, next: Self) -> Self {
        let count = self.count + next.count;
        let share = next.count / count;
        let apart = next.mean - self.mean;
        Self {
            count,
            mean: self.mean + apart * share,
            squares: self.squares + next.squares + apart * apart * self.count * share,
        }
    }
}

/// Measures each group over some pixels.
struct Measure<'a, T> {
    xs: &'a [T],
    channels: usize,
    groups: usize,
}

impl<T: Element> WithSimd for Measure<'_, T> {
    type Output = Vec<Moments>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Moments> {
        let Self { xs, channels, groups } = self;
        let size = channels / groups;
        let count = (xs.len() / groups) as f64;
        let mut row = T::scratch(channels);
        let mut sums = vec![0.0; channels];
        for xs in xs.chunks_exact(channels) {
            update(
                simd,
                [&mut sums],
                [T::view(xs, &mut row)],
                #[inline(always)]
                |[sum], [x]| [simd.add_f32s(sum, x)],
            );
        }
        let total = |sums: &[f32]| sums.iter().map(|&it| f64::from(it)).sum::<f64>();
        let means: Vec<f64> = sums.chunks_exact(size).map(|sums| total(sums) / count).collect();
        let mut pivots = vec![0.0; channels];
        for (pivots, &mean) in pivots.chunks_exact_mut(size).zip(&means) {
            pivots.fill(mean as f32);
        }
        sums.fill(0.0);
        for xs in xs.chunks_exact(channels) {
            update(
                simd,
                [&mut sums],
                [T::view(xs, &mut row), &pivots],
                #[inline(always)]
                |[sum], [x, pivot]| {
                    let apart = simd.sub_f32s(x, pivot);
                    [simd.mul_add_e_f32s(apart, apart, sum)]
                },
            );
        }
        let of_group = |(sums, &mean): (&[f32], &f64)| {
            // Squares were taken from the mean as f32 has it.
            let off = mean - f64::from(mean as f32);
            Moments { count, mean, squares: total(sums) - count * off * off }
        };
        sums.chunks_exact(size).zip(&means).map(of_group).collect()
    }
}

/// Writes `activation(x scale + shift)`.
struct Apply<'a, T, O> {
    xs: &'a [T],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    out: &'a mut [O],
}

impl<T: Element, O: Element> WithSimd for Apply<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { xs, scale, shift, activation, out } = self;
        let channels = scale.len();
        let (mut x_row, mut out_row) = (T::scratch(channels), O::scratch(channels));
        for (xs, out) in xs.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            update(
                simd,
                [O::view_mut(out, &mut out_row)],
                [T::view(xs, &mut x_row), scale, shift],
                #[inline(always)]
                |_, [x, scale, shift]| activation.apply(simd, [simd.mul_add_e_f32s(x, scale, shift)]),
            );
            O::commit(out, &out_row);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::filled;

    fn options(groups: usize) -> GroupNormOptions {
        GroupNormOptions { groups, eps: 1e-6, activation: Activation::None, dtype: DType::F32 }
    }

    /// By the definition, in f64.
    fn plain(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Tensor {
        let [xs, weight, bias] = [xs, weight, bias].map(|it| it.to_dtype(DType::F64).unwrap());
        let (b, h, w, c) = xs.dims4().unwrap();
        let grouped = xs.reshape((b, h * w, groups, c / groups)).unwrap().transpose(1, 2).unwrap();
        let grouped = grouped.reshape((b, groups, ())).unwrap();
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2).unwrap()).unwrap();
        let var = centred.sqr().unwrap().mean_keepdim(2).unwrap();
        let ys = centred.broadcast_div(&(var + eps).unwrap().sqrt().unwrap()).unwrap();
        let ys = ys.reshape((b, groups, h * w, c / groups)).unwrap().transpose(1, 2).unwrap();
        let ys = ys.reshape((b, h, w, c)).unwrap();
        ys.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap()
    }

    fn farthest(got: &Tensor, want: &Tensor) -> f64 {
        assert_eq!(got.dims(), want.dims());
        let apart = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
        apart.max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn agrees_with_the_definition_also_far_from_zero() {
        for (shape, groups) in
            [((3, 5, 9, 12), 4), ((1, 1, 1, 4), 2), ((2, 40, 31, 32), 8), ((1, 3, 3, 7), 1)]
        {
            let (weight, bias) = (filled(shape.3, 0.5), filled(shape.3, -0.25));
            let plain = |xs: &Tensor| plain(xs, &weight, &bias, groups, 1e-6);
            let norm = |xs: &Tensor, options| group_norm(xs, &weight, &bias, &options).unwrap();
            let exactly = |it: Tensor| it.to_dtype(DType::F64).unwrap();
            let (none, silu) =
                (options(groups), GroupNormOptions { activation: Activation::Silu, ..options(groups) });
            for (offset, tolerance) in [(0.0, 3e-6), (30.0, 3e-5)] {
                let xs = filled(shape, offset);
                let (got, want) = (norm(&xs, none), plain(&xs));
                assert!(farthest(&got, &want) < tolerance, "{shape:?} {offset}: {}", farthest(&got, &want));
                let got = norm(&xs, silu);
                assert!(farthest(&got, &want.silu().unwrap()) < tolerance);
            }
            let xs = filled(shape, 2.0).to_dtype(DType::BF16).unwrap();
            let relu = GroupNormOptions { activation: Activation::Relu, dtype: DType::BF16, ..none };
            let got = norm(&xs, relu);
            let want = plain(&xs).relu().unwrap();
            assert!(got.dtype() == DType::BF16 && farthest(&got, &want) < 2e-2, "{shape:?}");
            let same = norm(&xs.to_dtype(DType::F32).unwrap(), relu);
            assert!(same.dtype() == DType::BF16 && farthest(&same, &exactly(got)) == 0.0);
        }
    }

    #[test]
    fn other_shapes_are_errors_and_nan_stays_in_its_image_and_group() {
        let (weight, bias) = (filled(8, 0.0), filled(8, 0.0));
        let norm = |xs: &Tensor, groups| group_norm(xs, &weight, &bias, &options(groups));
        for (shape, groups) in [
            (vec![1, 2, 2, 4], 4),
            (vec![1, 0, 2, 8], 4),
            (vec![8, 2, 8], 4),
            (vec![1, 2, 2, 8], 3),
            (vec![1, 2, 2, 8], 0),
        ] {
            assert!(norm(&filled(shape.clone(), 0.0), groups).is_err(), "{shape:?} {groups}");
        }
        let mut values = vec![0.5f32; 2 * 4 * 8];
        values[9] = f32::NAN;
        let ys = norm(&Tensor::from_vec(values, (2, 2, 2, 8), &Device::Cpu).unwrap(), 4).unwrap();
        let ys: Vec<f32> = ys.flatten_all().unwrap().to_vec1().unwrap();
        for (i, y) in ys.iter().enumerate() {
            assert_eq!(y.is_nan(), i < 32 && i % 8 < 2, "{i}");
        }
    }
}
