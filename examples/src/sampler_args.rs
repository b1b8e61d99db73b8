//! The flags that say how to sample with which weights; all sampling programs have them.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use candle_core::DType;
use clap::ValueEnum;
use ddt_flow::{FlowError, NoiseSource};
use serde::Serialize;

/// `--last-step` unless it is given, as in the published results.
pub const LAST_STEP: f64 = 0.04;

/// The sampler and its weights.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct SamplerArgs {
    /// Threads to compute with; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Solver steps from noise to image; the paper's tables have 250
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub steps: usize,
    /// Strength of classifier-free guidance (unitless), 1 for none
    /// [default: 4 with the demo; of ImageNet 2 at 256 px, 3 at 512 px]
    #[arg(long, value_name = "SCALE")]
    pub guidance: Option<f64>,
    /// Flow times between which guidance acts, both excluded; 0 is noise, 1 is the image
    /// [default: 0,1 with the demo; 0.3,1 of ImageNet]
    #[arg(long, value_name = "LO,HI", value_parser = parse_interval, allow_hyphen_values = true)]
    pub interval: Option<(f64, f64)>,
    /// Channels of the latent that guidance acts on, the first ones, as DiT's code guides three of four
    /// [default: all]
    #[arg(long, value_name = "N")]
    pub guided_channels: Option<NonZeroUsize>,
    /// Weights of a weaker network of the same latents and classes, which guidance leads away from instead of
    /// "no class" (autoguidance) [default: none]
    #[arg(long, value_name = "PATH")]
    pub weaker: Option<PathBuf>,
    /// Length of the last step, in flow time before shifting, above 0 and at most 1
    #[arg(long, value_name = "LENGTH", default_value_t = LAST_STEP)]
    pub last_step: f64,
    /// Respacing of the steps: above 1 more of them near noise, below 1 near the image (unitless)
    #[arg(long, value_name = "SHIFT", default_value_t = 1.0)]
    pub timeshift: f64,
    /// How to take a step: euler (as in the paper's tables), heun, adams2, adams3, adams4, dpm2,
    /// euler-maruyama (stochastic, as DDT's code), euler-maruyama-repa (as REPA's), or dopri5, which divides
    /// each step until its error is below 1e-4, or another tolerance: dopri5:1e-6
    #[arg(long, value_name = "NAME", default_value = "euler")]
    pub solver: SolverName,
    /// Seed of all noise, which fixes the image of each class and column; with --rng torch neighbouring
    /// seeds share images
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Where noise comes from: a counter, or PyTorch's CPU generator seeded with
    /// SEED + 1000000 class + column, so that column 1 of seed 0 is column 0 of seed 1
    #[arg(long, value_enum, default_value_t = Rng::Counter)]
    pub rng: Rng,
    /// Number type of the network, and on a GPU of the autoencoder; 16 bits halve their memory
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What to compute on: cpu; in a build with GPUs (docs/CUDA.md) imagenet256, imagenet512 and
    /// generate_dataset draw on cuda, or on cuda:N, GPU N from 0
    #[arg(long, default_value = "cpu", value_parser = crate::gpu::parse)]
    pub device: String,
    /// Weights of the network: auto, demo, hub or a file (safetensors, or PyTorch's zip format).
    /// auto takes the published ones if they were fetched before, else the demo; hub fetches them
    #[arg(long, value_name = "auto|demo|hub|PATH", default_value = "auto")]
    pub weights: WeightsChoice,
    /// Sizes of the network, for a weights file that does not say its own, such as ddt-xl2-22en6de
    /// [default: none]
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Weights of the autoencoder: auto is the one the network was trained with
    #[arg(long, value_name = "auto|PATH", default_value = "auto")]
    pub vae: VaeChoice,
}

impl SamplerArgs {
    /// Checks that guidance is away from "no class" in all channels, which alone `what` is for.
    ///
    /// # Errors
    ///
    /// `--weaker` or `--guided-channels`.
    pub fn check_plain_guidance(&self, what: &str) -> anyhow::Result<()> {
        ensure!(
            self.weaker.is_none() && self.guided_channels.is_none(),
            "--weaker, --guided-channels: {what} for guidance away from \"no class\" in all channels; \
             leave both out"
        );
        Ok(())
    }
}

/// `--weights`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsChoice {
    /// The published weights if they are in the hub's cache, else the demo.
    Auto,
    /// The network that comes with the program.
    Demo,
    /// The published weights, fetched if need be.
    Hub,
    /// A file.
    File(PathBuf),
}

impl FromStr for WeightsChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "demo" => Self::Demo,
            "hub" => Self::Hub,
            path => Self::File(path.into()),
        })
    }
}

/// `--vae`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaeChoice {
    /// The autoencoder that the network was trained with.
    Auto,
    /// A file.
    File(PathBuf),
}

impl FromStr for VaeChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "auto" { Self::Auto } else { Self::File(text.into()) })
    }
}

/// `--solver`: a name that the library knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SolverName(String);

impl SolverName {
    /// The name by which `ddt_flow` knows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SolverName {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        // Short names become the solver's own.
        Ok(Self(ddt_flow::solver_by_name(text)?.name().to_owned()))
    }
}

/// `--rng`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rng {
    /// Noise addressed by seed and image
    Counter,
    /// The numbers of a PyTorch CPU generator
    Torch,
}

impl From<Rng> for NoiseSource {
    fn from(rng: Rng) -> Self {
        match rng {
            Rng::Counter => Self::Counter,
            Rng::Torch => Self::Torch,
        }
    }
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits, the range of f32
    Bf16,
    /// 16 bits, finer, overflows above 65504
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

fn parse_interval(text: &str) -> Result<(f64, f64), String> {
    let number = |part: &str| part.trim().parse::<f64>().ok();
    let bounds = text.split_once(',').and_then(|(low, high)| Some((number(low)?, number(high)?)));
    bounds.ok_or_else(|| "expected two numbers with a comma between, such as 0.3,1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solvers_are_those_of_the_library() {
        for name in ddt_flow::SOLVER_NAMES {
            let parsed: SolverName = name.parse().unwrap();
            assert_eq!(ddt_flow::solver_by_name(name).unwrap().name(), parsed.as_str());
        }
        assert_eq!("dopri5:1e-6".parse::<SolverName>().unwrap().as_str(), "dopri5:1e-6");
        assert!("heun3".parse::<SolverName>().unwrap_err().to_string().contains("adams2"));
    }
}
