//! Group normalisation.

use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch};
use super::memory::{Float, Slice};
use super::rows::{check_len, check_slice};

const NAME: &str = "group_norm";
const BLOCK: u32 = 256;

/// Positions that one block takes the moments of.
const PIECE: usize = 256;

/// Arguments of [`Cuda::group_norm`]: channels-last images, (B, P, C).
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a, T, O = T> {
    /// (B, P, C).
    pub x: &'a Slice<T>,
    /// P, the positions of an image.
    pub positions: usize,
    /// C, a multiple of 8 (bf16) or 4 (f32) up to 1024.
    pub channels: usize,
    /// Divides C.
    pub groups: usize,
    /// (C).
    pub weight: &'a Slice<T>,
    /// (C).
    pub bias: &'a Slice<T>,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Moments and scales, [`GroupNorm::scratch_len`] or more.
    pub scratch: &'a Slice<f32>,
    /// The result, (B, P, C), of T or of f32; not `x`.
    pub out: &'a Slice<O>,
}

impl<T, O> GroupNorm<'_, T, O> {
    /// How many numbers the scratch memory holds.
    pub fn scratch_len(images: usize, positions: usize, channels: usize) -> usize {
        2 * images * channels * (positions.div_ceil(PIECE) + 1)
    }
}

impl Cuda {
    /// ```text
    /// out = act((x - mean) / sqrt(var + eps) weight + bias)
    /// ```
    ///
    /// with mean and variance over the C / groups channels of a group and all positions of an image.
    ///
    /// # Errors
    /// If sizes do not divide, if a slice has another length or is not aligned, if O is neither T nor f32, or if
    /// the driver refuses.
    pub fn group_norm<T: Float, O: Float>(&self, arguments: &GroupNorm<'_, T, O>) -> Result<()> {
        let GroupNorm { x, positions, channels, groups, weight, bias, eps, silu, scratch, out } = *arguments;
        expect(
            channels.is_multiple_of(T::LANES) && (1..=1024).contains(&channels),
            NAME,
            format_args!("channels that are a multiple of {} up to 1024", T::LANES),
            channels,
        )?;
        expect(
            groups > 0 && channels.is_multiple_of(groups),
            NAME,
            format_args!("a number of groups that divides {channels} channels"),
            groups,
        )?;
        let images = x.len() / (positions * channels).max(1);
        expect(
            images <= 65535 && (1..=i32::MAX as usize).contains(&positions),
            NAME,
            "up to 65535 images of at least one position",
            format_args!("{images} images of {positions}"),
        )?;
        check_len(NAME, &self.device, ("x, whole images", x), images * positions * channels)?;
        check_len(NAME, &self.device, ("weight", weight), channels)?;
        check_len(NAME, &self.device, ("bias", bias), channels)?;
        check_len(NAME, &self.device, ("out", out), x.len())?;
        expect(
            O::INDEX == T::INDEX || O::INDEX == f32::INDEX,
            NAME,
            format_args!("a result of {} or f32", T::NAME),
            O::NAME,
        )?;
        let pieces = positions.div_ceil(PIECE);
        let needed = GroupNorm::<T, O>::scratch_len(images, positions, channels);
        check_slice(NAME, &self.device, scratch)?;
        expect(
            scratch.len() >= needed,
            NAME,
            format_args!("scratch memory of {needed} numbers or more"),
            scratch.len(),
        )?;
        let scales = scratch.sub(2 * images * channels * pieces..needed)?;

        let mut values = Arguments::default();
        values.address(x.address()).address(scratch.address());
        values.u32(positions as u32).u32(channels as u32).u32(PIECE as u32);
        self.start(kernels::GROUP_NORM_MOMENTS[T::INDEX], (pieces as u32, images as u32), BLOCK, values)?;

        let mut values = Arguments::default();
        values.address(scratch.address()).address(weight.address()).address(bias.address());
        values.address(scales.address());
        values.u32(positions as u32).u32(channels as u32).u32(PIECE as u32).f32(eps);
        self.start(kernels::GROUP_NORM_SCALES[T::INDEX], (groups as u32, images as u32), 32, values)?;

        let apply = if O::INDEX == T::INDEX { kernels::GROUP_NORM_APPLY } else { kernels::GROUP_NORM_WIDEN };
        let mut values = Arguments::default();
        values.address(x.address()).address(scales.address()).address(out.address());
        values.u32(images as u32).u32(positions as u32).u32(channels as u32).u32(u32::from(silu));
        self.each(NAME, apply[T::INDEX], x.len() / T::LANES, values)
    }

    fn start(
        &self,
        kernel: &'static str,
        (x, y): (u32, u32),
        block: u32,
        arguments: Arguments,
    ) -> Result<()> {
        self.launch(&Launch { kernel, grid: (x, y, 1), block, shared: 0, arguments })
    }
}
