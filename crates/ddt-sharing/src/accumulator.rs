//! The statistic that plans are made from, streaming: one image at a time, in f64.
//!
//! The measurement of "statistic dynamic programming" (arXiv:2504.05741, Sec. 3.4), from unshared sampling of
//! a few images:
//!
//! ```text
//! S_ij = mean over rows and tokens of cos(z_i, z_j)
//! ```

use rayon::prelude::*;

use crate::gram::Gram;
use crate::plan::{check_num_steps, check_step_count};
use crate::{MAX_SIMILARITY_STEPS, PlanError, Similarity};

/// Norms below this count as this, as in PyTorch's `cosine_similarity`.
const MIN_NORM: f64 = 1e-8;

/// Sums cosines while sampling goes on; keeps one matrix, and none of the states.
#[derive(Debug, Clone)]
pub struct SimilarityAccumulator {
    num_steps: usize,
    // Sums over tokens of the cosines.
    cosines: Gram,
    num_tokens: u64,
}

impl SimilarityAccumulator {
    /// Starts a statistic over `num_steps` sampling steps.
    ///
    /// # Errors
    ///
    /// [`PlanError::NumSteps`] unless `num_steps` is in `1..=`[`MAX_SIMILARITY_STEPS`].
    pub fn new(num_steps: usize) -> Result<Self, PlanError> {
        check_num_steps(num_steps, MAX_SIMILARITY_STEPS)?;
        Ok(Self { num_steps, cosines: Gram::new(num_steps), num_tokens: 0 })
    }

    /// Adds the self-conditions of every step for one row (an image, or its "no class" half), or several.
    ///
    /// Every token counts the same, so the mean over rows and tokens is that over all tokens added.
    /// A vector shorter than 1e-8 is divided by 1e-8 instead of its length, as PyTorch does; so a zero
    /// vector has cosine 0 with every other step's. A step's similarity with itself is 1 regardless:
    /// there is nothing to lose by using a step's own state.
    ///
    /// # Shapes
    ///
    /// `states`: one slice a step, each `(tokens, channels)` or `(rows, tokens, channels)`, contiguous.
    ///
    /// # Errors
    ///
    /// [`PlanError::StepCount`], [`PlanError::EmptyState`], [`PlanError::StateSize`] or
    /// [`PlanError::StateNotFinite`] (naming the first step and token); nothing has been added then.
    pub fn add<S: AsRef<[f32]> + Sync>(&mut self, states: &[S], channels: usize) -> Result<(), PlanError> {
        check_step_count("the list of states", self.num_steps, states.len())?;
        let len = states.first().map_or(0, |it| it.as_ref().len());
        if len == 0 || channels == 0 {
            return Err(PlanError::EmptyState { len, channels });
        }
        let wrong_size = |it: &S| it.as_ref().len() != len || !it.as_ref().len().is_multiple_of(channels);
        if let Some(step) = states.iter().position(wrong_size) {
            let expected = len.next_multiple_of(channels);
            return Err(PlanError::StateSize { step, expected, channels, got: states[step].as_ref().len() });
        }

        let scales: Vec<_> = states.par_iter().map(|it| inverse_norms(it.as_ref(), channels)).collect();
        for (step, scales) in scales.iter().enumerate() {
            if let Some(token) = scales.iter().position(|it| it.is_nan()) {
                return Err(PlanError::StateNotFinite { step, token });
            }
        }

        self.cosines.add(len, |step, start, out| {
            normalise(states[step].as_ref(), &scales[step], start, out);
        });
        self.num_tokens += (len / channels) as u64;
        Ok(())
    }

    /// Adds what another accumulator has seen.
    ///
    /// # Errors
    ///
    /// [`PlanError::StepCount`] if the other has another number of steps.
    pub fn merge(&mut self, other: &SimilarityAccumulator) -> Result<(), PlanError> {
        check_step_count("the other accumulator", self.num_steps, other.num_steps)?;
        self.cosines.merge(&other.cosines);
        self.num_tokens += other.num_tokens;
        Ok(())
    }

    /// Number of tokens added so far, over all rows.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Divides by the number of tokens.
    ///
    /// # Errors
    ///
    /// [`PlanError::NoStates`] if nothing was added.
    pub fn finish(self) -> Result<Similarity, PlanError> {
        if self.num_tokens == 0 {
            return Err(PlanError::NoStates);
        }
        let num_tokens = self.num_tokens as f64;
        Ok(Similarity::mirror(self.num_steps, |row, col| self.cosines.sum(col, row) / num_tokens))
    }
}

/// What to multiply each token by to give it length 1; NaN if it is not finite.
fn inverse_norms(state: &[f32], channels: usize) -> Vec<f64> {
    // The square of any f32 is finite in f64, so only a non-finite value makes a non-finite sum.
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let tokens = state.chunks_exact(channels).map(|token| token.iter().map(square).sum::<f64>().sqrt());
    tokens.map(|norm| if norm.is_finite() { norm.max(MIN_NORM).recip() } else { f64::NAN }).collect()
}

/// Writes numbers `start..start + out.len()` of the normalised state.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps of two tokens of two channels.
    fn two_steps(first: [f32; 4], second: [f32; 4]) -> Result<Similarity, PlanError> {
        let mut statistic = SimilarityAccumulator::new(2)?;
        statistic.add(&[first, second], 2)?;
        statistic.finish()
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
    fn wrong_states_are_named_and_leave_no_trace() {
        let mut statistic = SimilarityAccumulator::new(2).unwrap();
        let none: [[f32; 2]; 1] = [[1.0, 1.0]];
        assert!(matches!(statistic.add(&none, 2), Err(PlanError::StepCount { expected: 2, got: 1, .. })));
        let ragged: [&[f32]; 2] = [&[1.0, 1.0], &[1.0]];
        assert!(matches!(statistic.add(&ragged, 2), Err(PlanError::StateSize { step: 1, got: 1, .. })));
        let states = [[1.0_f32, 0.0, 1.0], [1.0, f32::NAN, 1.0]];
        assert!(matches!(statistic.add(&states, 2), Err(PlanError::StateSize { expected: 4, got: 3, .. })));
        assert!(matches!(statistic.add(&states, 0), Err(PlanError::EmptyState { .. })));
        let infinite = [[1.0_f32, 1.0], [1.0, f32::INFINITY]];
        assert!(matches!(statistic.add(&infinite, 1), Err(PlanError::StateNotFinite { step: 1, token: 1 })));
        assert!(matches!(statistic.add(&states, 1), Err(PlanError::StateNotFinite { step: 1, token: 1 })));
        assert_eq!(statistic.num_tokens(), 0);
        assert!(matches!(
            statistic.merge(&SimilarityAccumulator::new(3).unwrap()),
            Err(PlanError::StepCount { .. })
        ));
        assert!(matches!(statistic.finish(), Err(PlanError::NoStates)));
        assert!(matches!(SimilarityAccumulator::new(0), Err(PlanError::NumSteps { .. })));
        assert!(matches!(SimilarityAccumulator::new(usize::MAX), Err(PlanError::NumSteps { .. })));
    }
}
