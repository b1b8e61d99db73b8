//! Everything that generated images depend on, for whoever compares them.

use ddt_flow::{Guidance, NoiseSource, TimeGrid};
use ddt_model::DdtConfig;
use ddt_sharing::SharingPlan;
use serde::Serialize;

use super::order::ORDER;
use crate::gpu;
use crate::identity::Identity;
use crate::job::Job;
use crate::sampler_args::Dtype;

/// How pixels become bytes.
pub const ROUNDING: &str = "clamp(floor(127.5 x + 128), 0, 255)";

/// How images are made. It names no machine, time, place or number of processes: equal protocols, counts and
/// batches are equal images, on GPUs up to the order in which libraries sum.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Protocol {
    /// Name of the program.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Name of the sizes, size of the latents, and SHA-256 of the network's file.
    pub weights: String,
    /// Sizes of the network.
    pub network: DdtConfig,
    /// Name and SHA-256 of the file of the autoencoder.
    pub autoencoder: String,
    /// Number type of the network, and on a GPU of the autoencoder.
    pub dtype: Dtype,
    /// Kind of the device, where it is not the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<&'static str>,
    /// The labels, as ranges: `0-9`.
    pub classes: String,
    /// Seed of noise and order.
    pub seed: u64,
    /// Where noise comes from.
    pub rng: NoiseSource,
    /// The number that, with the seed, fixes the noise of an image.
    pub sample_number: String,
    /// Which image stands in which row.
    pub order: String,
    /// How steps are taken.
    pub solver: String,
    /// The steps; time 0 is noise, 1 is the image.
    pub grid: TimeGrid,
    /// Strength and interval of guidance.
    pub guidance: Guidance,
    /// SHA-256 of the weaker network that guidance leads away from, where it is not "no class".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weaker: Option<String>,
    /// Steps at which the condition encoder runs; `None` is all of them.
    pub recompute_steps: Option<Vec<usize>>,
    /// How pixels become bytes.
    pub rounding: String,
}

impl Protocol {
    /// The protocol of a job whose files are `identity`.
    #[must_use]
    pub fn new(job: &Job, identity: &Identity, plan: Option<&SharingPlan>, classes: &[u32]) -> Self {
        Self {
            program: "generate_dataset".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            weights: identity.network.clone(),
            network: job.weights.config.clone(),
            autoencoder: identity.autoencoder.clone(),
            dtype: job.dtype,
            device: gpu::kind(&job.device),
            classes: ranges(classes),
            seed: job.seed,
            rng: job.rng,
            sample_number: "1000000 label + column".to_owned(),
            order: ORDER.to_owned(),
            solver: job.solver.name().to_owned(),
            grid: job.grid.clone(),
            guidance: job.guidance,
            weaker: identity.weaker.clone(),
            recompute_steps: plan.map(|it| it.recompute_steps().to_vec()),
            rounding: ROUNDING.to_owned(),
        }
    }
}

/// Ascending numbers as `0-9,12`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let text = runs.filter_map(|run| match run {
        [] => None,
        [only] => Some(only.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
    });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[0, 1, 2, 7, 9, 10]), "0-2,7,9-10");
    }
}
