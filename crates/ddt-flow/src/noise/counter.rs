//! Counter-based random numbers: a pure function of seed, purpose, step and sample.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Purpose of random numbers; different purposes never share numbers.
///
/// The discriminant is part of the address: it never changes, and new purposes get new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// The noise that sampling starts from.
    SampleNoise = 1,
    /// The noise that training mixes into data.
    TrainNoise = 2,
    /// The time of a training sample.
    TrainTime = 3,
    /// Whether training replaces a label by "no class".
    LabelDropout = 4,
    /// The order of the training set in an epoch.
    Order = 5,
    /// Initial weights.
    Init = 6,
    /// Noise inside a stochastic solver.
    Solver = 7,
    /// The coin that decides if training mirrors an image.
    Flip = 8,
    /// The draw from an autoencoder's posterior.
    Posterior = 9,
    /// The class of a generated sample.
    Label = 10,
    /// The order in which generated samples are written.
    Shuffle = 11,
    /// Times and noise that a trained network is measured with.
    Evaluation = 12,
}

/// Random numbers addressed by (seed, purpose, step, sample): no generator state, no draw order.
///
/// ```text
/// ChaCha8, key = seed | step | purpose | "ddt-flow" (little-endian), stream = sample
/// ```
///
/// Every method starts at the beginning of the same stream, so use each address for one draw only: the
/// results of [`normal`](Self::normal) and [`uniform`](Self::uniform) at one address are related.
/// All results have the same bits on every platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CounterNoise {
    /// Seed of the whole run.
    pub seed: u64,
    /// Purpose of the numbers.
    pub purpose: Purpose,
    /// Step, epoch or other counter of time.
    pub step: u64,
    /// Index of the sample, independent of batches.
    pub sample: u64,
}

impl CounterNoise {
    /// Address of one draw.
    pub fn new(seed: u64, purpose: Purpose, step: u64, sample: u64) -> Self {
        Self { seed, purpose, step, sample }
    }

    /// `n` standard normal numbers; a shorter draw is a prefix of a longer one.
    ///
    /// ```text
    /// rho = sqrt(-2 ln u_1), theta = 2 pi u_2;  rho cos(theta), rho sin(theta)   (Box-Muller, in f64)
    /// ```
    pub fn normal(&self, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        self.fill_normal(&mut out);
        out
    }

    /// [`normal`](Self::normal) into a given slice.
    pub fn fill_normal(&self, out: &mut [f32]) {
        let mut stream = self.stream();
        for pair in out.chunks_mut(2) {
            let (first, second) = normal_pair(&mut stream);
            for (slot, value) in pair.iter_mut().zip([first, second]) {
                *slot = value as f32;
            }
        }
    }

    /// `n` numbers in [0, 1), each a multiple of `2^-53`; a shorter draw is a prefix of a longer one.
    pub fn uniform(&self, n: usize) -> Vec<f64> {
        let mut stream = self.stream();
        (0..n).map(|_| unit(&mut stream)).collect()
    }

    /// The first number of [`uniform`](Self::uniform).
    pub fn first_uniform(&self) -> f64 {
        unit(&mut self.stream())
    }

    /// The first number of [`normal`](Self::normal), not rounded to f32.
    pub fn first_normal(&self) -> f64 {
        normal_pair(&mut self.stream()).0
    }

    /// A uniform integer in `0..bound`; `None` if `bound` is 0.
    pub fn below(&self, bound: u64) -> Option<u64> {
        (bound > 0).then(|| below(&mut self.stream(), bound))
    }

    /// Shuffles `items`, all orders equally likely (Fisher-Yates).
    pub fn shuffle<T>(&self, items: &mut [T]) {
        let mut stream = self.stream();
        for last in (1..items.len()).rev() {
            let other = below(&mut stream, last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }

    /// The numbers `0..n` in a random order.
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    fn stream(&self) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.step.to_le_bytes());
        key[16..24].copy_from_slice(&(self.purpose as u64).to_le_bytes());
        key[24..].copy_from_slice(b"ddt-flow");
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_stream(self.sample);
        stream
    }
}

const TWO_POW_MINUS_53: f64 = 1.0 / (1u64 << 53) as f64;

/// A number in [0, 1).
fn unit(stream: &mut ChaCha8Rng) -> f64 {
    (stream.next_u64() >> 11) as f64 * TWO_POW_MINUS_53
}

/// Two independent standard normal numbers. `libm`, because the platform's functions differ in the last bit.
fn normal_pair(stream: &mut ChaCha8Rng) -> (f64, f64) {
    // In (0, 1], so that the logarithm is finite.
    let above_zero = unit(stream) + TWO_POW_MINUS_53;
    let rho = (-2.0 * libm::log(above_zero)).sqrt();
    let (sin, cos) = libm::sincos(std::f64::consts::TAU * unit(stream));
    (rho * cos, rho * sin)
}

/// An integer in `0..bound`, for `bound > 0`.
fn below(stream: &mut ChaCha8Rng, bound: u64) -> u64 {
    // Draws from the incomplete last run of `bound` would favour small results.
    let spill = (u64::MAX % bound + 1) % bound;
    loop {
        let draw = stream.next_u64();
        if draw <= u64::MAX - spill {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(sample: u64) -> CounterNoise {
        CounterNoise::new(1, Purpose::TrainNoise, 0, sample)
    }

    /// Computed by independent code. A change here changes every image ever generated from a seed.
    #[test]
    fn golden_values() {
        let address = CounterNoise::new(7, Purpose::SampleNoise, 3, 11);
        assert_eq!(address.normal(3), [1.298_751_6, 0.402_927_6, 0.680_527_03]);
        assert_eq!(address.uniform(2), [0.396_708_641_462_256_93, 0.047_878_048_356_619_796]);
        assert_eq!(address.permutation(8), [0, 2, 6, 4, 5, 7, 1, 3]);
    }

    #[test]
    fn purposes_keep_their_numbers() {
        let all = [
            Purpose::SampleNoise,
            Purpose::TrainNoise,
            Purpose::TrainTime,
            Purpose::LabelDropout,
            Purpose::Order,
            Purpose::Init,
            Purpose::Solver,
            Purpose::Flip,
            Purpose::Posterior,
            Purpose::Label,
            Purpose::Shuffle,
            Purpose::Evaluation,
        ];
        assert!(all.iter().enumerate().all(|(index, &it)| it as usize == index + 1));
    }

    #[test]
    fn each_part_of_the_address_matters() {
        let base = CounterNoise::new(1, Purpose::TrainNoise, 2, 3);
        let others = [
            CounterNoise { seed: 2, ..base },
            CounterNoise { seed: 1 | 1 << 40, ..base },
            CounterNoise { purpose: Purpose::SampleNoise, ..base },
            CounterNoise { step: 3, ..base },
            CounterNoise { sample: 4, ..base },
            CounterNoise { sample: 3 | 1 << 40, ..base },
            CounterNoise { step: 3, sample: 2, ..base },
        ];
        assert_eq!(base.normal(5), base.normal(5));
        for other in others {
            assert!(base.normal(4).iter().zip(other.normal(4)).all(|(a, b)| *a != b), "{other:?}");
        }
    }

    #[test]
    fn short_draws_are_prefixes() {
        let long = noise(5).normal(1001);
        for n in [0, 1, 2, 7, 1000] {
            assert_eq!(noise(5).normal(n), long[..n]);
        }
        assert_eq!(noise(5).first_normal() as f32, long[0]);
        assert_eq!(noise(5).uniform(3)[..1], [noise(5).first_uniform()]);
    }

    #[test]
    fn moments_of_the_normals() {
        let draws: Vec<f64> = (0..100).flat_map(|it| noise(it).normal(2000)).map(f64::from).collect();
        let moment = |power| draws.iter().map(|x: &f64| x.powi(power)).sum::<f64>() / draws.len() as f64;
        // 200,000 draws: five standard errors are sqrt((2k - 1)!! / n) * 5 for the k-th moment.
        assert!(moment(1).abs() < 0.012, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.016, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.044, "skewness {}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.11, "kurtosis {}", moment(4));
        let neighbours = draws.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / draws.len() as f64;
        assert!(neighbours.abs() < 0.012, "correlation {neighbours}");
    }

    #[test]
    fn integers_are_even_over_their_range() {
        let mut counts = [0; 6];
        for sample in 0..60_000 {
            counts[noise(sample).below(6).unwrap() as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(noise(0).below(0), None);
        assert_eq!(noise(0).below(1), Some(0));
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for sample in 0..30_000 {
            *counts.entry(noise(sample).permutation(3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (4_650..5_350).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn integers_stay_below_their_bound(sample in any::<u64>(), bound in 1..=u64::MAX) {
            prop_assert!(noise(sample).below(bound).unwrap() < bound);
        }

        #[test]
        fn permutations_hold_every_number_once(sample in any::<u64>(), n in 0usize..200) {
            let mut order = noise(sample).permutation(n);
            order.sort_unstable();
            prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }
}
