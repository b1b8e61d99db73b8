//! What a solver remembers of a run.

use std::collections::VecDeque;

use candle_core::{DType, Result, Tensor};

/// All that a solver carries from one step to the next.
///
/// A run starts from an empty history. A multistep solver keeps the velocities of earlier steps (or what
/// it makes of them) with their times, oldest first, and says at each [`push`](Self::push) how many to
/// keep, so that memory stays bounded; a stochastic one keeps a key a sample; an adaptive one keeps the
/// length of its next sub-step. One that needs nothing leaves it empty.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<(f64, Tensor)>,
    keys: Option<Vec<u64>>,
    substep: Option<f64>,
}

impl History {
    /// Adds the velocity at `t`, then forgets the oldest until at most `keep` are left.
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

    /// Says whether no velocity is held, as at the start of a run.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Times and velocities, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (f64, &Tensor)> + ExactSizeIterator {
        self.entries.iter().map(|(t, velocity)| (*t, velocity))
    }

    /// A number for each sample that seeds its noise, the same throughout the run: a hash of the latents
    /// the sample started from, those of the first call.
    ///
    /// So the noise of a sample is a function of where it started and nothing else: neither of the
    /// batch it is in, nor of any generator's state.
    ///
    /// # Shapes
    ///
    /// `x`: (B, ...) -> B numbers
    ///
    /// # Errors
    ///
    /// `x` is a scalar, or cannot be read.
    pub fn sample_keys(&mut self, x: &Tensor) -> Result<&[u64]> {
        if self.keys.is_none() {
            let rows = x.reshape((x.dim(0)?, ()))?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            self.keys = Some(rows.iter().map(|row| hash(row)).collect());
        }
        Ok(self.keys.as_deref().unwrap_or_default())
    }

    /// The length of the next sub-step, if one was proposed.
    pub fn substep(&self) -> Option<f64> {
        self.substep
    }

    /// Proposes the length of the next sub-step.
    pub fn propose_substep(&mut self, length: f64) {
        self.substep = Some(length);
    }
}

/// A 64 bit hash of the numbers' bits: each is mixed in by splitmix64's output function.
fn hash(row: &[f32]) -> u64 {
    row.iter().fold(0, |hash, value| {
        let mut z = (hash ^ u64::from(value.to_bits())).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn keeps_the_newest_last() {
        let mut history = History::default();
        assert!(history.is_empty());
        for t in [0.0, 0.25, 0.5] {
            history.push(t, Tensor::new(t as f32, &Device::Cpu).unwrap(), 2);
        }
        let held: Vec<_> = history.iter().map(|(t, v)| (t, v.to_scalar::<f32>().unwrap())).collect();
        assert_eq!(held, [(0.25, 0.25), (0.5, 0.5)]);
        assert_eq!(history.len(), 2);
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
