//! The order in which images are seen.

use std::sync::{Mutex, PoisonError};

use ddt_flow::{CounterNoise, Purpose};

use crate::error::TrainError;

/// An endless run through a set of images: epoch after epoch, each in an order of its own that depends
/// on the seed and the epoch alone.
#[derive(Debug)]
pub struct EpochOrder {
    seed: u64,
    len: usize,
    flips: bool,
    // The epoch asked for last: it is asked for again nearly always.
    epoch: Mutex<Option<(u64, Vec<usize>)>>,
}

/// An image of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Which one.
    pub image: usize,
    /// Whether it is mirrored.
    pub flipped: bool,
}

impl EpochOrder {
    /// An order of `len` images; with `flips`, each is mirrored in half of the epochs, at random.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there are none.
    pub fn new(seed: u64, len: usize, flips: bool) -> Result<Self, TrainError> {
        if len == 0 {
            return Err(TrainError::Data {
                expected: "one or more images".to_owned(),
                got: "none".to_owned(),
            });
        }
        Ok(Self { seed, len, flips, epoch: Mutex::new(None) })
    }

    /// The image at a position of the run.
    pub fn at(&self, position: u64) -> Pick {
        let epoch = position / self.len as u64;
        let place = (position % self.len as u64) as usize;
        let mut kept = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let order = match kept.take() {
            Some((of, order)) if of == epoch => order,
            _ => CounterNoise::new(self.seed, Purpose::Order, epoch, 0).permutation(self.len),
        };
        // In range: an order has as many places as there are images.
        let image = order.get(place).copied().unwrap_or_default();
        *kept = Some((epoch, order));
        let mirror =
            || CounterNoise::new(self.seed, Purpose::Flip, epoch, image as u64).first_uniform() < 0.5;
        Pick { image, flipped: self.flips && mirror() }
    }

    /// The images at some positions, in order.
    pub fn picks(&self, positions: std::ops::Range<u64>) -> Vec<Pick> {
        positions.map(|it| self.at(it)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_image_once_in_another_order() {
        let order = EpochOrder::new(3, 50, true).unwrap();
        let epoch = |e: u64| order.picks(e * 50..(e + 1) * 50);
        for e in 0..3 {
            let mut images: Vec<usize> = epoch(e).iter().map(|it| it.image).collect();
            assert_ne!(images, (0..50).collect::<Vec<_>>());
            images.sort_unstable();
            assert_eq!(images, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        let flipped = epoch(1).iter().filter(|it| it.flipped).count();
        assert!((15..=35).contains(&flipped), "{flipped}");
        // Whatever was asked before.
        assert_eq!(order.picks(45..55), EpochOrder::new(3, 50, true).unwrap().picks(45..55));
        assert!(EpochOrder::new(3, 50, false).unwrap().picks(0..99).iter().all(|it| !it.flipped));
        assert!(EpochOrder::new(3, 0, false).is_err());
    }
}
