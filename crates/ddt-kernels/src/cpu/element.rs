//! Element types: rows are computed in f32, and half-precision rows pass through an f32 scratch row.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::WithDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::buffers::{Fill, Fresh};
use super::microkernel::Operand;

/// A type that the operations take and return.
pub(crate) trait Element: WithDType {
    /// The type in which GEMMs of this type multiply.
    type Operand: Operand + Element;

    /// Whether this type stores f32 sums without loss.
    const HOLDS_SUMS: bool;

    /// Zeroed scratch for rows of `len` elements; empty where none is needed.
    fn scratch(len: usize) -> Vec<f32>;

    /// `xs` as f32: itself, or converted into `scratch`.
    fn view<'a>(xs: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32];

    /// Where to compute `out` as f32: itself, or `scratch`; [`Element::commit`] completes it.
    fn view_mut<'a>(out: &'a mut [Self], scratch: &'a mut [f32]) -> &'a mut [f32];

    /// Rounds to `out` what was computed in `scratch`, if anything was.
    fn commit(out: &mut [Self], scratch: &[f32]);

    /// `values` rounded to this type.
    fn collect(values: Vec<f32>) -> Vec<Self>;

    /// `xs` rounded to this type.
    fn rounded_copy(xs: &[f32]) -> Cow<'_, [Self]>;

    /// `values` in f32.
    fn into_f32(values: Vec<Self>) -> Vec<f32>;

    /// Copies `xs` into `out`.
    fn widen(xs: &[Self], out: &mut [f32]);

    /// Rounds `xs` into `out`.
    fn narrow(xs: &[f32], out: &mut [Self]);

    /// `x` rounded to this type.
    fn round(x: f32) -> Self;

    /// `xs` in this type: itself, or rounded into `scratch`.
    fn rounded<'a>(xs: &'a [f32], scratch: &'a mut [Self]) -> &'a [Self];
}

impl Element for f32 {
    type Operand = Self;

    const HOLDS_SUMS: bool = true;

    #[inline(always)]
    fn scratch(_len: usize) -> Vec<f32> {
        Vec::new()
    }

    #[inline(always)]
    fn view<'a>(xs: &'a [Self], _scratch: &'a mut [f32]) -> &'a [f32] {
        xs
    }

    #[inline(always)]
    fn view_mut<'a>(out: &'a mut [Self], _scratch: &'a mut [f32]) -> &'a mut [f32] {
        out
    }

    #[inline(always)]
    fn commit(_out: &mut [Self], _scratch: &[f32]) {}

    #[inline(always)]
    fn collect(values: Vec<f32>) -> Vec<Self> {
        values
    }

    fn rounded_copy(xs: &[f32]) -> Cow<'_, [Self]> {
        Cow::Borrowed(xs)
    }

    fn into_f32(values: Vec<Self>) -> Vec<f32> {
        values
    }

    #[inline(always)]
    fn widen(xs: &[Self], out: &mut [f32]) {
        out.copy_from_slice(xs);
    }

    #[inline(always)]
    fn narrow(xs: &[f32], out: &mut [Self]) {
        out.copy_from_slice(xs);
    }

    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn rounded<'a>(xs: &'a [f32], _scratch: &'a mut [Self]) -> &'a [Self] {
        xs
    }
}

macro_rules! half_precision {
    ($t:ty, $operand:ty, $widen:expr, $narrow:expr, $round:expr) => {
        impl Element for $t {
            type Operand = $operand;
            const HOLDS_SUMS: bool = false;

            #[inline(always)]
            fn scratch(len: usize) -> Vec<f32> {
                vec![0.0; len]
            }

            #[inline(always)]
            fn view<'a>(xs: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32] {
                let scratch = &mut scratch[..xs.len()];
                Self::widen(xs, scratch);
                scratch
            }

            #[inline(always)]
            fn view_mut<'a>(out: &'a mut [Self], scratch: &'a mut [f32]) -> &'a mut [f32] {
                &mut scratch[..out.len()]
            }

            #[inline(always)]
            fn commit(out: &mut [Self], scratch: &[f32]) {
                Self::narrow(&scratch[..out.len()], out);
            }

            fn collect(values: Vec<f32>) -> Vec<Self> {
                Self::rounded_copy(&values).into_owned()
            }

            fn rounded_copy(xs: &[f32]) -> Cow<'_, [Self]> {
                Cow::Owned(converted(xs, Self::narrow))
            }

            fn into_f32(values: Vec<Self>) -> Vec<f32> {
                converted(&values, Self::widen)
            }

            #[inline(always)]
            fn widen(xs: &[Self], out: &mut [f32]) {
                $widen(xs, out);
            }

            #[inline(always)]
            fn narrow(xs: &[f32], out: &mut [Self]) {
                $narrow(xs, out);
            }

            #[inline(always)]
            fn round(x: f32) -> Self {
                $round(x)
            }

            #[inline(always)]
            fn rounded<'a>(xs: &'a [f32], scratch: &'a mut [Self]) -> &'a [Self] {
                let scratch = &mut scratch[..xs.len()];
                Self::narrow(xs, scratch);
                scratch
            }
        }
    };
}

half_precision!(bf16, bf16, widen_bf16, narrow_bf16, round_bf16);
half_precision!(f16, f32, HalfFloatSliceExt::convert_to_f32_slice, narrow_f16, f16::from_f32);

/// `xs` through `convert`, in parts on all threads.
fn converted<A: Sync, B: WithDType>(xs: &[A], convert: impl Fn(&[A], &mut [B]) + Sync) -> Vec<B> {
    const PART: usize = 16 * 1024;
    let mut out = Fresh::new(xs.len());
    let parts: Vec<_> = out.parts(xs.chunks(PART).map(<[A]>::len)).zip(xs.chunks(PART)).collect();
    parts.into_par_iter().for_each(|(out, xs)| convert(xs, out.open()));
    out.finish()
}

#[inline(always)]
fn widen_bf16(xs: &[bf16], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(xs) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

#[inline(always)]
fn narrow_bf16(xs: &[f32], out: &mut [bf16]) {
    for (out, x) in out.iter_mut().zip(xs) {
        *out = round_bf16(*x);
    }
}

/// Rounds to nearest even without a branch; the conversion of the `half` crate branches on NaN, which
/// keeps it out of SIMD lanes.
#[inline(always)]
fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest_even = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
    bf16::from_bits(if is_nan { quiet_nan } else { nearest_even } as u16)
}

#[inline(always)]
fn narrow_f16(xs: &[f32], out: &mut [f16]) {
    out.convert_from_f32_slice(xs);
}

/// `range` of each of `xs` as f32: itself, or converted into its scratch.
#[inline(always)]
pub(crate) fn views<'a, T: Element, const N: usize>(
    xs: [&'a [T]; N],
    range: Range<usize>,
    scratch: &'a mut [Vec<f32>; N],
) -> [&'a [f32]; N] {
    let mut views: [&[f32]; N] = [&[]; N];
    for ((view, xs), scratch) in views.iter_mut().zip(xs).zip(scratch) {
        *view = T::view(&xs[range.clone()], scratch);
    }
    views
}

/// Where to compute `range` of each of `outs` as f32: itself, or its scratch; [`commit`] completes it.
#[inline(always)]
pub(crate) fn views_mut<'a, T: Element, const M: usize>(
    outs: &'a mut [&mut [T]; M],
    range: Range<usize>,
    scratch: &'a mut [Vec<f32>; M],
) -> [&'a mut [f32]; M] {
    let mut views: [&mut [f32]; M] = std::array::from_fn(
        #[inline(always)]
        |_| &mut [] as &mut [f32],
    );
    for ((view, out), scratch) in views.iter_mut().zip(outs).zip(scratch) {
        *view = T::view_mut(&mut out[range.clone()], scratch);
    }
    views
}

/// Rounds to `range` of each of `outs` what was computed in its scratch, if anything was.
#[inline(always)]
pub(crate) fn commit<T: Element, const M: usize>(
    outs: &mut [&mut [T]; M],
    range: Range<usize>,
    scratch: &[Vec<f32>; M],
) {
    for (out, scratch) in outs.iter_mut().zip(scratch) {
        T::commit(&mut out[range.clone()], scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_like_the_half_crate_on_every_upper_half_and_its_ties() {
        for high in 0..=u16::MAX {
            let xs: Vec<f32> = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
                .iter()
                .map(|low| f32::from_bits((u32::from(high) << 16) | low))
                .collect();
            let mut got = vec![bf16::ZERO; xs.len()];
            bf16::narrow(&xs, &mut got);
            for (x, got) in xs.iter().zip(got) {
                let want = bf16::from_f32(*x);
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{x:e}");
            }
        }
    }

    #[test]
    fn halves_survive_a_round_trip() {
        let xs: Vec<f16> = (0..1000).map(|i| f16::from_f32(i as f32 / 7.0 - 70.0)).collect();
        let mut wide = vec![0.0; xs.len()];
        f16::widen(&xs, &mut wide);
        let mut back = vec![f16::ZERO; xs.len()];
        f16::narrow(&wide, &mut back);
        assert_eq!(xs, back);
    }
}
