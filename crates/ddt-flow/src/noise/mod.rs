//! Sampling noise: the same numbers for a sample in any batch, on any thread and machine.

mod counter;
mod torch;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use counter::{CounterNoise, Purpose};
pub use torch::{TorchGenerator, torch_randn};

use crate::error::{FlowError, Result};

/// Generator of the noise that sampling starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseSource {
    /// [`CounterNoise`] for [`Purpose::SampleNoise`], step 0.
    #[default]
    Counter,
    /// PyTorch's CPU generator: sample `i` of a run with seed `s` is what
    /// `torch.randn(C, H, W, generator=torch.Generator().manual_seed(s + i))` gives, the sum wrapping at `2^64`.
    Torch,
}

impl NoiseSource {
    /// Standard normal noise for numbered samples, each independent of the rest of the batch.
    ///
    /// # Shapes
    /// `samples`: B numbers, `shape`: (C, H, W) -> (B, C, H, W) in f32
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if there are no samples, no elements or too many of them;
    /// [`FlowError::Candle`] if the copy to `device` fails.
    pub fn batch(
        self,
        seed: u64,
        samples: &[u64],
        shape: (usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let (channels, height, width) = shape;
        let misshapen =
            |expected| FlowError::invalid("noise", expected, [samples.len(), channels, height, width]);
        let per_sample = channels.checked_mul(height).and_then(|it| it.checked_mul(width));
        let total = per_sample.and_then(|it| it.checked_mul(samples.len()));
        let (Some(per_sample), Some(total)) = (per_sample, total) else {
            return Err(misshapen("of a shape (B, C, H, W) that fits in memory"));
        };
        if total == 0 {
            return Err(misshapen("of shape (B, C, H, W) without empty dimensions"));
        }
        let mut values: Vec<f32> = Vec::new();
        if values.try_reserve_exact(total).is_err() {
            return Err(misshapen("of a shape (B, C, H, W) that fits in memory"));
        }
        values.resize(total, 0.0);
        values.par_chunks_exact_mut(per_sample).zip(samples).for_each(|(out, &sample)| match self {
            NoiseSource::Counter => CounterNoise::new(seed, Purpose::SampleNoise, 0, sample).fill_normal(out),
            NoiseSource::Torch => TorchGenerator::new(seed.wrapping_add(sample)).fill(out),
        });
        Ok(Tensor::from_vec(values, (samples.len(), channels, height, width), device)?)
    }
}

/// Noise of [`NoiseSource::Counter`].
///
/// # Shapes
/// `samples`: B numbers, `shape`: (C, H, W) -> (B, C, H, W) in f32
///
/// # Errors
/// Those of [`NoiseSource::batch`].
pub fn noise_batch(
    seed: u64,
    samples: &[u64],
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    NoiseSource::Counter.batch(seed, samples, shape, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(source: NoiseSource, seed: u64, samples: &[u64]) -> Vec<Vec<f32>> {
        let noise = source.batch(seed, samples, (2, 3, 5), &Device::Cpu).unwrap();
        assert_eq!(noise.dims(), [samples.len(), 2, 3, 5]);
        noise.flatten_from(1).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn a_sample_does_not_depend_on_its_batch() {
        for source in [NoiseSource::Counter, NoiseSource::Torch] {
            let all = rows(source, 9, &[0, 1, 2, 3]);
            assert_eq!(rows(source, 9, &[2, 0]), [all[2].clone(), all[0].clone()]);
            assert_eq!(rows(source, 9, &[3]), all[3..]);
            assert_ne!(all[0], all[1]);
            assert_ne!(all[0], rows(source, 10, &[0])[0]);
        }
    }

    #[test]
    fn torch_samples_are_consecutive_seeds() {
        let expected = torch_randn(42, (2, 3, 5), &Device::Cpu).unwrap();
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(rows(NoiseSource::Torch, 40, &[2])[0], expected);
        assert_eq!(rows(NoiseSource::Torch, u64::MAX, &[43])[0], expected);
    }

    #[test]
    fn empty_and_impossible_shapes_are_errors() {
        let cases: [(&[u64], _); 4] = [
            (&[], (4, 8, 8)),
            (&[1], (4, 0, 8)),
            (&[1], (usize::MAX, 2, 1)),
            (&[1, 2], (usize::MAX / 4, 1, 1)),
        ];
        for (samples, shape) in cases {
            let err = noise_batch(0, samples, shape, &Device::Cpu).unwrap_err();
            assert!(matches!(err, FlowError::Invalid { what: "noise", .. }), "{err}");
        }
    }
}
