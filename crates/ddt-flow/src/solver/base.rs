//! The interface of a solver, and the history that it carries from step to step.

use std::collections::VecDeque;
use std::fmt::Debug;

use candle_core::{DType, Result, Tensor, bail};

use crate::model::Evaluation;
use crate::time_grid::Step;

/// Velocity at `(x, t)` as a solver sees it; the result has the shape of `x`.
pub type Velocity<'a> = &'a mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>;

/// A method of integrating `dx/dt = v(x, t)` step by step.
///
/// A solver has no state: the caller holds the [`History`], so one solver serves any number of runs.
///
/// It may evaluate the velocity any number of times, anywhere between the ends of the current step. Each
/// evaluation belongs to that step ([`Step::at`]): it is guided if the step's start is, and with a sharing
/// plan it recomputes the self-condition if the step is a recompute step.
pub trait Solver: Debug + Send + Sync {
    /// Name for [`solver_by_name`](crate::solver_by_name).
    fn name(&self) -> &str;

    /// Order of the error: halving all steps divides it by `2^order`. For a stochastic solver, of the
    /// marginals; for an adaptive pair, of the sub-steps it chooses.
    fn order(&self) -> usize;

    /// Steps from `x` at `step.t` to the latents at `step.t_next`.
    ///
    /// # Shapes
    /// `x`: (B, ...) -> (B, ...) in the same float type
    ///
    /// # Errors
    /// `velocity` fails, or `history` holds times that are not before `step.t`.
    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, history: &mut History) -> Result<Tensor>;
}

/// State of a run between steps.
///
/// A run starts from an empty history. A multistep solver adds one tensor per step (a velocity, or the
/// prediction it makes of it) and says how many to keep, so that memory stays bounded; a stochastic solver
/// adds a key per sample; an adaptive solver the length of its next sub-step.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<(f64, Tensor)>,
    keys: Option<Vec<u64>>,
    substep: Option<f64>,
}

impl History {
    /// Adds the velocity at `t`, then drops the oldest until at most `keep` are left.
    pub fn push(&mut self, t: f64, velocity: Tensor, keep: usize) {
        self.entries.push_back((t, velocity));
        while self.entries.len() > keep {
            self.entries.pop_front();
        }
    }

    /// Number of velocities held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no velocity is held, as at the start of a run.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Times and velocities, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (f64, &Tensor)> + ExactSizeIterator {
        self.entries.iter().map(|(t, velocity)| (*t, velocity))
    }

    /// The newest time and velocity; `None` at the start of a run.
    ///
    /// # Errors
    /// It is not from before `t`: the history belongs to another run.
    pub fn last_before(&self, t: f64) -> Result<Option<(f64, &Tensor)>> {
        match self.iter().next_back() {
            Some((last, _)) if last >= t => {
                bail!(
                    "expected a history of times before t = {t}, got t = {last}; start each run with an empty one"
                )
            }
            last => Ok(last),
        }
    }

    /// Noise seed of each sample, the same throughout a run: a hash of the latents of the first call.
    ///
    /// So the noise of a sample depends only on its initial latents, not on its batch or on a generator.
    ///
    /// # Shapes
    /// `x`: (B, ...) -> B numbers
    ///
    /// # Errors
    /// `x` is a scalar, or cannot be read.
    pub fn sample_keys(&mut self, x: &Tensor) -> Result<&[u64]> {
        if self.keys.is_none() {
            let rows = x.reshape((x.dim(0)?, ()))?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            self.keys = Some(rows.iter().map(|row| hash(row)).collect());
        }
        Ok(self.keys.as_deref().unwrap_or_default())
    }

    /// Proposed length of the next sub-step.
    pub fn substep(&self) -> Option<f64> {
        self.substep
    }

    /// Proposes the length of the next sub-step.
    pub fn propose_substep(&mut self, length: f64) {
        self.substep = Some(length);
    }
}

/// A 64 bit hash of the numbers' bits, each mixed in by splitmix64's output function.
fn hash(row: &[f32]) -> u64 {
    row.iter().fold(0, |hash, value| {
        let mut z = (hash ^ u64::from(value.to_bits())).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// `sum_i weights_i terms_i`, in order; zero weights are skipped, and a weight of 1 multiplies nothing.
pub(super) fn weighted_sum<'a>(
    weights: &[f64],
    terms: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, term) in weights.iter().zip(terms).filter(|(weight, _)| **weight != 0.0) {
        let term = if *weight == 1.0 { term.clone() } else { (term * *weight)? };
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => bail!("expected at least one velocity with a weight other than 0"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn keeps_the_newest_velocities() {
        let mut history = History::default();
        assert!(history.is_empty());
        for t in [0.0, 0.25, 0.5] {
            history.push(t, Tensor::new(t as f32, &Device::Cpu).unwrap(), 2);
        }
        let held: Vec<_> = history.iter().map(|(t, v)| (t, v.to_scalar::<f32>().unwrap())).collect();
        assert_eq!(held, [(0.25, 0.25), (0.5, 0.5)]);
        assert_eq!(history.len(), 2);
        assert_eq!(history.last_before(0.6).unwrap().map(|(t, _)| t), Some(0.5));
        assert!(history.last_before(0.5).unwrap_err().to_string().contains("history"));
        assert!(History::default().last_before(0.0).unwrap().is_none());
    }

    #[test]
    fn keys_are_those_of_the_first_latents_and_tell_samples_apart() {
        let mut history = History::default();
        let x = Tensor::new(&[[1f32, 2.0], [2.0, 1.0], [1.0, 2.0]], &Device::Cpu).unwrap();
        let keys = history.sample_keys(&x).unwrap().to_vec();
        assert_eq!(keys[0], keys[2]);
        assert_ne!(keys[0], keys[1]);
        assert_eq!(history.sample_keys(&(x * 2.0).unwrap()).unwrap(), keys);
        let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
        assert!(History::default().sample_keys(&scalar).is_err());
    }
}
