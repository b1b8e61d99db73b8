//! What a multistep solver remembers.

use std::collections::VecDeque;

use candle_core::Tensor;

/// The velocities of earlier steps and their times, oldest first.
///
/// A run starts from an empty history. A solver that needs none leaves it empty; one that does says at
/// each [`push`](Self::push) how many to keep, so that memory stays bounded.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<(f64, Tensor)>,
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

    /// Says whether nothing is held, as at the start of a run.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Times and velocities, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (f64, &Tensor)> + ExactSizeIterator {
        self.entries.iter().map(|(t, velocity)| (*t, velocity))
    }
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
}
