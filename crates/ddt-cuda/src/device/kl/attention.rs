//! Attention over the positions of the lowest resolution.

use ddt_kernels::cuda::{Cuda, CudaError, Float, Gemm, GroupNorm, Slice};

use super::{
    place::Here,
    program::Level,
    weights::{Affine, AttentionWeights},
};

/// One attention of one program.
#[derive(Clone, Copy)]
pub(super) struct Attend<'a, T> {
    pub(super) cuda: &'a Cuda,
    pub(super) here: Here<'a>,
    pub(super) weights: &'a AttentionWeights,
    pub(super) norm: &'a Affine<T>,
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) at: Level,
}

impl<T: Float> Attend<'_, T> {
    /// `x += out(softmax(q k^T / sqrt(C)) v)` over the normed positions, (B, L, C), image by image in f32: scores
    /// of 8 bits would blur which positions are looked at.
    ///
    /// Values are multiplied transposed and without their bias, which weights that sum to 1 leave as it is: it is
    /// added to the result.
    pub(super) fn run(&self, xs: &Slice<T>) -> Result<(), CudaError> {
        let (positions, channels) = (self.at.positions(self.here.place.sizes.latent), self.at.channels);
        let len = positions * channels;
        let scratch = self.here.place.scratch.cast::<f32>()?;
        let kept = |nth: usize| scratch.sub(nth * len..(nth + 1) * len);
        let (normed, query, key, value) = (kept(0)?, kept(1)?, kept(2)?, kept(3)?);
        let scores = scratch.sub(4 * len..scratch.len())?;
        let at_once = (scores.len() / positions).min(positions);
        let AttentionWeights { query: to_query, key: to_key, value: to_value, out: to_out } = self.weights;
        for image in 0..self.here.images {
            let xs = xs.sub(image * len..(image + 1) * len)?;
            self.cuda.group_norm(&GroupNorm {
                x: &xs,
                positions,
                channels,
                groups: self.groups,
                weight: &self.norm.weight,
                bias: &self.norm.bias,
                eps: self.eps,
                silu: false,
                scratch: &self.here.place.moments,
                out: &normed,
            })?;
            self.product(&normed, (&to_query.weight, Some(&to_query.bias)), &query, channels)?;
            self.product(&normed, (&to_key.weight, Some(&to_key.bias)), &key, channels)?;
            // (C, L): the weight's rows times the positions.
            self.product(&to_value.weight, (&normed, None), &value, channels)?;
            // The normed positions are read no more: the result takes their place.
            for first in (0..positions).step_by(at_once.max(1)) {
                let count = at_once.min(positions - first);
                let rows = first * channels..(first + count) * channels;
                let scores = scores.sub(0..count * positions)?;
                self.product(&query.sub(rows.clone())?, (&key, None), &scores, channels)?;
                self.cuda.softmax_rows(&scores, positions, 1.0 / (channels as f32).sqrt())?;
                self.product(&scores, (&value, Some(&to_value.bias)), &normed.sub(rows)?, positions)?;
            }
            self.product(&normed, (&to_out.weight, Some(&to_out.bias)), &query, channels)?;
            self.cuda.accumulate(&xs, &query)?;
        }
        Ok(())
    }

    fn product(
        &self,
        input: &Slice<f32>,
        (weight, bias): (&Slice<f32>, Option<&Slice<f32>>),
        out: &Slice<f32>,
        depth: usize,
    ) -> Result<(), CudaError> {
        self.cuda.gemm(&Gemm { input, weight, bias, out, depth, workspace: &self.here.place.workspace })
    }
}
