//! Latents of the same images by different samplers.

use anyhow::Result;
use candle_core::{Device, Tensor};
use ddt_flow::{Guidance, LinearPath, NoiseSource, Solver, TimeGrid};
use ddt_model::{SampleOptions, VelocityNetwork, sample};

use crate::generate::{Interrupted, Item, noise};
use crate::job::Job;
use crate::progress::Cancel;

/// A network, and the images that are drawn with it again and again.
pub struct Runs<'a> {
    network: &'a dyn VelocityNetwork,
    /// Noise and labels of each batch.
    batches: Vec<(Tensor, Vec<u32>)>,
    seed: u64,
    cancel: &'a Cancel,
}

impl<'a> Runs<'a> {
    /// Takes the noise that `imagenet256` would draw these images from.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn new(
        job: &Job,
        network: &'a dyn VelocityNetwork,
        items: &[Item],
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let batch = |items: &[Item]| Ok((noise(job, items)?, items.iter().map(|it| it.label).collect()));
        let batches = items.chunks(job.batch).map(batch).collect::<Result<_>>()?;
        Ok(Self { network, batches, seed: job.seed, cancel })
    }

    /// Draws the images; their latents, and how often the network was evaluated for a batch, in the mean.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] if that is asked for; a network that gives what is no number.
    pub fn draw(&self, solver: &dyn Solver, grid: &TimeGrid, guidance: Guidance) -> Result<(Tensor, usize)> {
        let options = SampleOptions { grid: grid.clone(), solver, guidance, plan: None };
        let (mut latents, mut evaluations) = (Vec::with_capacity(self.batches.len()), 0);
        let _stepping = self.cancel.stepping();
        for (noise, labels) in &self.batches {
            let sampled = sample(self.network, noise, labels, &options, &mut |_| self.cancel.flow());
            if self.cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let sampled = sampled?;
            evaluations += sampled.calls.decoder;
            latents.push(sampled.latents);
        }
        Ok((Tensor::cat(&latents, 0)?, evaluations / self.batches.len().max(1)))
    }

    /// The latents `data` mixed with other noise than they were drawn from.
    ///
    /// # Errors
    ///
    /// Too little memory.
    pub fn noisy(&self, data: &Tensor, t: f64) -> Result<Tensor> {
        let (b, c, h, w) = data.dims4()?;
        let samples: Vec<u64> = (0..b as u64).collect();
        let noise =
            NoiseSource::Counter.batch(self.seed.wrapping_add(1), &samples, (c, h, w), &Device::Cpu)?;
        let times = Tensor::full(t as f32, b, &Device::Cpu)?;
        Ok(LinearPath.interpolate(data, &noise, &times)?)
    }
}

/// The same guidance at all times: the field of which solvers are compared has no jump.
///
/// # Errors
///
/// None; a guidance that was made is finite.
pub fn everywhere(guidance: Guidance) -> Result<Guidance> {
    Ok(Guidance::new(guidance.scale(), (-1.0, 2.0))?)
}
