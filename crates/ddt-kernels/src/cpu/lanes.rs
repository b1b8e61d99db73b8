//! Loops over slices in SIMD lanes; the last, partial lane group is loaded as zeros and stored masked.
//!
//! Closures given to these functions must be marked `#[inline(always)]`: a closure that is not inlined
//! into the caller's instruction set calls every instruction as a function.

use pulp::Simd;

/// An array of the values of `$value`, whose length the context gives. A loop, not `std::array::from_fn`, whose closures
/// are not always inlined, and which takes long to compile for hundreds of them.
macro_rules! each {
    ($zero:expr, |$i:ident| $value:expr) => {{
        let mut all = [$zero; _];
        for ($i, place) in all.iter_mut().enumerate() {
            *place = $value;
        }
        all
    }};
}

/// Replaces `outs[..][j]` by `f(outs[..][j], ins[..][j])`; all slices have one length.
///
/// An `f` that ignores its first argument simply writes; the unused load disappears.
#[inline(always)]
pub(crate) fn update<S: Simd, const M: usize, const N: usize>(
    simd: S,
    outs: [&mut [f32]; M],
    ins: [&[f32]; N],
    f: impl Fn([S::f32s; M], [S::f32s; N]) -> [S::f32s; M],
) {
    debug_assert!(same_lengths(outs.iter().map(|out| out.len()).chain(ins.iter().map(|xs| xs.len()))));
    let outs = outs.map(|out| S::as_mut_simd_f32s(out));
    let ins = ins.map(|xs| S::as_simd_f32s(xs));
    let groups = outs.iter().map(|out| out.0.len()).chain(ins.iter().map(|xs| xs.0.len())).min().unwrap_or(0);
    let zero = simd.splat_f32s(0.0);
    for i in 0..groups {
        let new = f(each!(zero, |m| outs[m].0[i]), each!(zero, |n| ins[n].0[i]));
        for m in 0..M {
            outs[m].0[i] = new[m];
        }
    }
    if outs.iter().any(|out| !out.1.is_empty()) {
        let old = each!(zero, |m| simd.partial_load_f32s(&*outs[m].1));
        let new = f(old, each!(zero, |n| simd.partial_load_f32s(ins[n].1)));
        for m in 0..M {
            simd.partial_store_f32s(outs[m].1, new[m]);
        }
    }
}

/// Folds `f` over `ins[..][j]`, from accumulators of zero.
///
/// `f` must leave an accumulator unchanged where all its arguments are zero.
#[inline(always)]
pub(crate) fn fold<S: Simd, const M: usize, const N: usize>(
    simd: S,
    ins: [&[f32]; N],
    f: impl Fn([S::f32s; M], [S::f32s; N]) -> [S::f32s; M],
) -> [f32; M] {
    debug_assert!(same_lengths(ins.iter().map(|xs| xs.len())));
    // Four sets of accumulators hide the latency of the additions.
    const WAYS: usize = 4;
    let zero = simd.splat_f32s(0.0);
    let mut acc = [[zero; M]; WAYS];
    let ins = ins.map(|xs| S::as_simd_f32s(xs));
    let groups = ins.iter().map(|xs| xs.0.len()).min().unwrap_or(0);
    let mut i = 0;
    while i + WAYS <= groups {
        for (way, acc) in acc.iter_mut().enumerate() {
            *acc = f(*acc, each!(zero, |n| ins[n].0[i + way]));
        }
        i += WAYS;
    }
    while i < groups {
        acc[0] = f(acc[0], each!(zero, |n| ins[n].0[i]));
        i += 1;
    }
    if ins.iter().any(|xs| !xs.1.is_empty()) {
        acc[1] = f(acc[1], each!(zero, |n| simd.partial_load_f32s(ins[n].1)));
    }
    each!(0.0, |m| {
        let even = simd.add_f32s(acc[0][m], acc[2][m]);
        let odd = simd.add_f32s(acc[1][m], acc[3][m]);
        simd.reduce_sum_f32s(simd.add_f32s(even, odd))
    })
}

fn same_lengths(mut lens: impl Iterator<Item = usize>) -> bool {
    let first = lens.next();
    lens.all(|len| Some(len) == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instruction_set::instruction_sets;

    struct SumAndScale<'a>(&'a [f32], &'a mut [f32]);

    impl pulp::WithSimd for SumAndScale<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let [sum] = fold(
                simd,
                [self.0],
                #[inline(always)]
                |[acc], [x]| [simd.add_f32s(acc, x)],
            );
            update(
                simd,
                [self.1],
                [self.0],
                #[inline(always)]
                |[old], [x]| [simd.mul_add_e_f32s(x, x, old)],
            );
            sum
        }
    }

    #[test]
    fn every_length_is_covered_exactly_once() {
        for arch in instruction_sets() {
            for len in 0..200 {
                let xs: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let mut out = vec![1.0; len];
                let sum = arch.dispatch(SumAndScale(&xs, &mut out));
                assert_eq!(sum, (len * len.saturating_sub(1) / 2) as f32);
                assert!(out.iter().zip(&xs).all(|(out, x)| *out == 1.0 + x * x), "length {len}");
            }
        }
    }
}
