//! Statistics that plans are made from: cosines and inner products between the self-conditions of every two
//! steps, streamed one image at a time, in f64.
//!
//! The measurement of "statistic dynamic programming" (arXiv:2504.05741, Sec. 3.4), from unshared sampling of
//! a few images:
//!
//! ```text
//! S_ij = mean over rows and tokens of cos(z_i, z_j)
//! G_ij = mean over rows and tokens of z_i . z_j
//! ```

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::error::PlanError;
use crate::plan::check_num_steps;
use crate::similarity::{InnerProducts, MAX_SIMILARITY_STEPS, Similarity};

/// Smaller norms count as this, as in PyTorch's `cosine_similarity`.
const MIN_NORM: f64 = 1e-8;

/// Running sums over tokens of cosines and inner products; holds two matrices and no states.
#[derive(Debug, Clone)]
pub struct SimilarityAccumulator {
    num_steps: usize,
    cosines: Gram,
    products: Gram,
    num_tokens: u64,
}

impl SimilarityAccumulator {
    /// Starts a statistic over `num_steps` sampling steps.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless `num_steps` is in `1..=`[`MAX_SIMILARITY_STEPS`].
    pub fn new(num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        let empty = Gram::new(num_steps);
        Ok(Self { num_steps, cosines: empty.clone(), products: empty, num_tokens: 0 })
    }

    /// Adds the self-conditions of every step for one row (an image, or its unconditional row), or several.
    ///
    /// Every token has the same weight, so the mean over rows and tokens is that over all tokens added.
    /// For cosines, a vector shorter than 1e-8 is divided by 1e-8 instead of its length, as PyTorch does; so a
    /// zero vector has cosine 0 with every other step's. A step's similarity with itself is always 1: using a
    /// step's own state loses nothing.
    ///
    /// # Shapes
    /// `states`: one slice per step, each `(tokens, channels)` or `(rows, tokens, channels)`, contiguous.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] for another number of steps, states that are empty, of different sizes or not a
    /// multiple of `channels`, and values that are not finite (naming the first step and token); nothing has
    /// been added then.
    pub fn add<S: AsRef<[f32]> + Sync>(&mut self, states: &[S], channels: usize) -> Result<(), PlanError> {
        PlanError::check_steps("the list of states", self.num_steps, states.len())?;
        let len = states.first().map_or(0, |it| it.as_ref().len());
        if len == 0 || channels == 0 {
            let got = format!("{len} numbers and {channels} channels");
            return Err(PlanError::invalid("a state", "of at least one token of one channel", got));
        }
        let wrong_size = |it: &S| it.as_ref().len() != len || !it.as_ref().len().is_multiple_of(channels);
        if let Some(step) = states.iter().position(wrong_size) {
            let expected =
                format!("of {} numbers in tokens of {channels} channels", len.next_multiple_of(channels));
            let got = states[step].as_ref().len();
            return Err(PlanError::invalid(format!("the state of step {step}"), expected, got));
        }

        let scales: Vec<_> = states.par_iter().map(|it| inverse_norms(it.as_ref(), channels)).collect();
        for (step, scales) in scales.iter().enumerate() {
            if let Some(token) = scales.iter().position(|it| it.is_nan()) {
                let what = format!("token {token} of the state of step {step}");
                return Err(PlanError::invalid(what, "finite", "NaN or infinity"));
            }
        }

        self.cosines.add(len, |step, start, out| {
            normalise(states[step].as_ref(), &scales[step], start, out);
        });
        self.products.add(len, |step, start, out| {
            for (out, &x) in out.iter_mut().zip(&states[step].as_ref()[start..]) {
                *out = f64::from(x);
            }
        });
        self.num_tokens += (len / channels) as u64;
        Ok(())
    }

    /// Adds the sums of another accumulator.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if the other has another number of steps.
    pub fn merge(&mut self, other: &SimilarityAccumulator) -> Result<(), PlanError> {
        PlanError::check_steps("the other accumulator", self.num_steps, other.num_steps)?;
        self.cosines.merge(&other.cosines);
        self.products.merge(&other.products);
        self.num_tokens += other.num_tokens;
        Ok(())
    }

    /// Number of tokens added so far, over all rows.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Mean cosines.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if nothing was added.
    pub fn similarity(&self) -> Result<Similarity, PlanError> {
        let num_tokens = self.checked_tokens()?;
        Ok(Similarity::mirror(self.num_steps, |row, col| self.cosines.sum(col, row) / num_tokens))
    }

    /// Mean inner products.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if nothing was added, or all states of a step are zero.
    pub fn inner_products(&self) -> Result<InnerProducts, PlanError> {
        let num_tokens = self.checked_tokens()?;
        InnerProducts::mirror(self.num_steps, |row, col| self.products.sum(col, row) / num_tokens)
    }

    fn checked_tokens(&self) -> Result<f64, PlanError> {
        match self.num_tokens {
            0 => Err(PlanError::invalid("a statistic", "of at least one image", "none")),
            num_tokens => Ok(num_tokens as f64),
        }
    }
}

/// Factor that gives each token length 1; NaN if the token is not finite.
fn inverse_norms(state: &[f32], channels: usize) -> Vec<f64> {
    // The square of any f32 is finite in f64, so only a non-finite value makes a non-finite sum.
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let tokens = state.chunks_exact(channels).map(|token| token.iter().map(square).sum::<f64>().sqrt());
    tokens.map(|norm| if norm.is_finite() { norm.max(MIN_NORM).recip() } else { f64::NAN }).collect()
}

/// Numbers `start..start + out.len()` of the normalised state.
fn normalise(state: &[f32], scales: &[f64], start: usize, out: &mut [f64]) {
    let channels = state.len() / scales.len();
    let end = start + out.len();
    let mut at = start;
    while at < end {
        let token = at / channels;
        let stop = end.min((token + 1) * channels);
        for (out, &x) in out[at - start..stop - start].iter_mut().zip(&state[at..stop]) {
            *out = f64::from(x) * scales[token];
        }
        at = stop;
    }
}

/// Rows of a tile, and the multiple that the number of rows is padded to. A multiple of [`TILE_COLS`].
const TILE_ROWS: usize = 4;
/// Columns of a tile: 4 by 2 vector accumulators keep the multipliers busy within 16 registers.
const TILE_COLS: usize = 2;
/// Columns of a panel: 250 rows of it are 750 KiB. A multiple of every vector width.
const PANEL: usize = 384;

/// Sums of dot products between rows: `sums += X X^T`, streamed over the columns of `X`; only `col >= row` is
/// meaningful.
///
/// `X` never exists as a whole. A panel of a few hundred of its columns is converted to f64 at a time, small
/// enough for the cache, and every tile of `sums` adds up its panels in the same order for any number of
/// threads.
#[derive(Debug, Clone)]
struct Gram {
    num_rows: usize,
    // Number of rows padded to whole tiles; the padding stays zero.
    stride: usize,
    sums: Vec<f64>,
}

impl Gram {
    fn new(num_rows: usize) -> Self {
        let stride = num_rows.next_multiple_of(TILE_ROWS);
        Self { num_rows, stride, sums: vec![0.0; stride * stride] }
    }

    /// The sum for `row <= col`.
    fn sum(&self, row: usize, col: usize) -> f64 {
        self.sums[row * self.stride + col]
    }

    /// Adds another's sums; both must have the same number of rows.
    fn merge(&mut self, other: &Gram) {
        for (sum, more) in self.sums.iter_mut().zip(&other.sums) {
            *sum += more;
        }
    }

    /// Adds the dot products of `num_cols` more columns.
    ///
    /// `fill(row, start, out)` writes columns `start..start + out.len()` of a row.
    fn add(&mut self, num_cols: usize, fill: impl Fn(usize, usize, &mut [f64]) + Sync) {
        let Self { num_rows, stride, ref mut sums } = *self;
        let arch = Arch::new();
        let mut panel = vec![0.0; stride * PANEL];
        for start in (0..num_cols).step_by(PANEL) {
            let width = PANEL.min(num_cols - start);
            panel.par_chunks_mut(PANEL).take(num_rows).enumerate().for_each(|(row, out)| {
                let (filled, rest) = out.split_at_mut(width);
                fill(row, start, filled);
                rest.fill(0.0);
            });
            sums.par_chunks_mut(TILE_ROWS * stride).enumerate().for_each(|(tile, sums)| {
                arch.dispatch(AddTileRow { panel: &panel, sums, first_row: tile * TILE_ROWS, stride });
            });
        }
    }
}

/// Adds one panel to `TILE_ROWS` rows of the sums, from their diagonal on.
struct AddTileRow<'a> {
    panel: &'a [f64],
    sums: &'a mut [f64],
    first_row: usize,
    stride: usize,
}

impl WithSimd for AddTileRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panel, sums, first_row, stride } = self;
        let row = |row: usize| S::as_simd_f64s(&panel[row * PANEL..(row + 1) * PANEL]).0;
        let [a0, a1, a2, a3] = [0, 1, 2, 3].map(|at| row(first_row + at));
        for col in (first_row..stride).step_by(TILE_COLS) {
            let [b0, b1] = [row(col), row(col + 1)];
            let mut acc = [[simd.splat_f64s(0.0); TILE_COLS]; TILE_ROWS];
            for (((((&a0, &a1), &a2), &a3), &b0), &b1) in a0.iter().zip(a1).zip(a2).zip(a3).zip(b0).zip(b1) {
                for (acc, a) in acc.iter_mut().zip([a0, a1, a2, a3]) {
                    acc[0] = simd.mul_add_e_f64s(a, b0, acc[0]);
                    acc[1] = simd.mul_add_e_f64s(a, b1, acc[1]);
                }
            }
            for (at, acc) in acc.iter().enumerate() {
                for (sum, &acc) in sums[at * stride + col..].iter_mut().zip(acc) {
                    *sum += simd.reduce_sum_f64s(acc);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gram_equals_the_plain_sums_at_every_size() {
        for (num_rows, num_cols) in [(1, 1), (2, 5), (3, 383), (4, 384), (5, 385), (9, 1000)] {
            let entry = |row: usize, col: usize| ((row * 31 + col * 17) % 23) as f64 - 11.0;
            let mut gram = Gram::new(num_rows);
            for _ in 0..2 {
                gram.add(num_cols, |row, start, out| {
                    for (at, out) in out.iter_mut().enumerate() {
                        *out = entry(row, start + at);
                    }
                });
            }
            for i in 0..num_rows {
                for j in i..num_rows {
                    let plain: f64 = (0..num_cols).map(|col| entry(i, col) * entry(j, col)).sum();
                    // Small integers: every sum is exact.
                    assert_eq!(gram.sum(i, j), 2.0 * plain, "{num_rows} rows, {num_cols} columns");
                }
            }
        }
    }

    /// Two steps of two tokens of two channels.
    fn two_steps(first: [f32; 4], second: [f32; 4]) -> Result<Similarity, PlanError> {
        let mut statistic = SimilarityAccumulator::new(2)?;
        statistic.add(&[first, second], 2)?;
        statistic.similarity()
    }

    #[test]
    fn is_the_mean_of_the_cosines() {
        let similarity = two_steps([3.0, 4.0, 1.0, 0.0], [4.0, 3.0, 0.0, -2.0]).unwrap();
        assert!((similarity.similarity(0, 1).unwrap() - 0.48).abs() < 1e-15);
        assert!((similarity.dissimilarity(1, 0).unwrap() - 0.52).abs() < 1e-15);
        assert_eq!(similarity.similarity(1, 1), Some(1.0));
        assert_eq!(similarity.similarity(0, 2), None);
        assert_eq!(similarity.similarity(2, 0), None);
    }

    #[test]
    fn short_vectors_are_divided_by_the_least_norm() {
        let similarity = two_steps([0.0; 4], [0.0, 0.0, 1.0, 0.0]).unwrap();
        assert_eq!(similarity.similarity(0, 1), Some(0.0));
        assert_eq!(similarity.similarity(0, 0), Some(1.0));
        // The first token's cosine is 1, but it is 1e-9 long at one step: 0.1.
        let similarity = two_steps([1e-9, 0.0, 1.0, 0.0], [5.0, 0.0, 1.0, 0.0]).unwrap();
        assert!((similarity.similarity(0, 1).unwrap() - 0.55).abs() < 1e-7);
    }

    #[test]
    fn huge_values_do_not_overflow() {
        let similarity = two_steps([f32::MAX; 4], [f32::MIN; 4]).unwrap();
        assert!((similarity.similarity(0, 1).unwrap() + 1.0).abs() < 1e-15);
    }

    #[test]
    fn wrong_states_are_named_and_add_nothing() {
        let mut statistic = SimilarityAccumulator::new(2).unwrap();
        let refused = |result: Result<(), PlanError>, culprit: &str| {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(culprit), "{message}");
        };
        refused(statistic.add(&[[1.0_f32, 1.0]], 2), "list of states must be of 2 steps, got 1");
        let ragged: [&[f32]; 2] = [&[1.0, 1.0], &[1.0]];
        refused(
            statistic.add(&ragged, 2),
            "state of step 1 must be of 2 numbers in tokens of 2 channels, got 1",
        );
        let states = [[1.0_f32, 0.0, 1.0], [1.0, f32::NAN, 1.0]];
        refused(
            statistic.add(&states, 2),
            "state of step 0 must be of 4 numbers in tokens of 2 channels, got 3",
        );
        refused(statistic.add(&states, 0), "3 numbers and 0 channels");
        let infinite = [[1.0_f32, 1.0], [1.0, f32::INFINITY]];
        refused(statistic.add(&infinite, 1), "token 1 of the state of step 1 must be finite");
        refused(statistic.add(&states, 1), "token 1 of the state of step 1 must be finite");
        refused(statistic.merge(&SimilarityAccumulator::new(3).unwrap()), "of 2 steps, got 3");
        assert_eq!(statistic.num_tokens(), 0);
        assert!(statistic.similarity().unwrap_err().to_string().contains("at least one image"));
        assert!(statistic.inner_products().is_err());
        for num_steps in [0, usize::MAX] {
            assert!(
                SimilarityAccumulator::new(num_steps).unwrap_err().to_string().contains("number of steps")
            );
        }
        statistic.add(&[[0.0_f32, 0.0], [1.0, 0.0]], 2).unwrap();
        assert!(statistic.inner_products().unwrap_err().to_string().contains("step 0"));
    }
}
