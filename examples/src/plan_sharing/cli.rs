//! The command line of `plan_sharing`.

use std::path::PathBuf;

use clap::{Parser, value_parser};

use super::plans::Target;
use crate::cli::{
    Args as SamplerArgs, Dtype, Resolution, Rng, SolverName, VaeChoice, WeightsChoice, parse_interval,
};
use crate::sharing_choice::SharingChoice;

const EXAMPLES: &str = "\
Examples:
  plan_sharing                                       plans for imagenet256's defaults
  plan_sharing --steps 250 --quality 0.98,0.95       and the cheapest plans this similar
  plan_sharing --weights hub --steps 250 --test-images 0
  imagenet256 --share out/sharing/plan-0.8.json      draws with a plan; its settings must be the same";

/// Measures how alike the self-conditions of a network are from step to step, and plans at which steps the
/// condition encoder runs.
///
/// A plan serves the network, steps, guidance and solver it was made with, and no others.
#[derive(Debug, Clone, Parser)]
#[command(name = "plan_sharing", version, after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Sharing ratios to plan for: the share of steps that skip the condition encoder, each in [0, 1)
    #[arg(long, value_name = "RATIO,...", value_delimiter = ',', value_parser = parse_ratio,
          default_value = "0.5,0.66,0.75,0.8,0.83,0.87")]
    pub budgets: Vec<f64>,
    /// Mean similarities to plan for, each in (0, 1]: the fewest runs of the encoder that reach it
    /// [default: none]
    #[arg(long, value_name = "SIMILARITY,...", value_delimiter = ',', value_parser = parse_quality)]
    pub quality: Vec<f64>,
    /// Images to measure the similarity on, of classes spread over the table
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=100_000))]
    pub images: u32,
    /// Other images to compare the plans on, drawn without sharing and with every plan; 0 for plans alone
    /// [default: as many as --images]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=100_000))]
    pub test_images: Option<u32>,
    /// Folder to write into; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/sharing")]
    pub out: PathBuf,
    /// Side of the images in pixels, 256 or 512, which fixes the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    pub size: Resolution,
    /// Images drawn at once to compare plans; small batches take turns more often, for steadier times.
    /// The similarity is measured one image at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Solver steps from noise to image; the default is imagenet256's, the paper's tables have 250
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub steps: usize,
    /// Strength of classifier-free guidance (unitless), 1 for none
    /// [default: 3 with the demo; of ImageNet 2 at 256 px, 3 at 512 px]
    #[arg(long, value_name = "SCALE")]
    pub guidance: Option<f64>,
    /// Flow times between which guidance acts, both excluded; 0 is noise, 1 is the image
    #[arg(long, value_name = "LO,HI", default_value = "0.3,1", value_parser = parse_interval, allow_hyphen_values = true)]
    pub interval: (f64, f64),
    /// Length of the last step, in flow time before shifting
    #[arg(long, value_name = "LENGTH", default_value_t = 0.04)]
    pub last_step: f64,
    /// Respacing of the steps: above 1 more of them near noise, below 1 near the image (unitless)
    #[arg(long, value_name = "SHIFT", default_value_t = 1.0)]
    pub timeshift: f64,
    /// How to take a step
    #[arg(long, value_enum, default_value_t = SolverName::Euler)]
    pub solver: SolverName,
    /// Seed of all noise
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Where noise comes from: a counter, or PyTorch's CPU generator
    #[arg(long, value_enum, default_value_t = Rng::Counter)]
    pub rng: Rng,
    /// Number type of the network; 16 bits halve its memory
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
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

impl Args {
    /// What to plan for: ratios, then qualities, each value once.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        let ratios = self.budgets.iter().map(|&ratio| Target::Ratio(ratio));
        let mut targets = Vec::new();
        for target in ratios.chain(self.quality.iter().map(|&at_least| Target::Quality(at_least))) {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }

    /// Number of images to compare the plans on.
    #[must_use]
    pub fn num_test_images(&self) -> u32 {
        self.test_images.unwrap_or(self.images)
    }

    /// The command line of `imagenet256` with the same sampler, without sharing; it writes to `picture`.
    #[must_use]
    pub fn sampler(&self, picture: PathBuf) -> SamplerArgs {
        SamplerArgs {
            classes: Vec::new(),
            images: Some(1),
            batch: Some(self.batch),
            threads: self.threads,
            steps: self.steps,
            guidance: self.guidance,
            interval: self.interval,
            last_step: self.last_step,
            timeshift: self.timeshift,
            solver: self.solver,
            seed: self.seed,
            rng: self.rng,
            dtype: self.dtype,
            device: "cpu".to_owned(),
            weights: self.weights.clone(),
            preset: self.preset.clone(),
            vae: self.vae.clone(),
            share: SharingChoice::None,
            out: Some(picture),
        }
    }
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|it| (0.0..1.0).contains(it));
    // The sum makes 0 of -0, which would be written with its sign.
    ratio.map(|it| it + 0.0).ok_or_else(|| "expected a ratio from 0 to below 1, such as 0.8".to_owned())
}

fn parse_quality(text: &str) -> Result<f64, String> {
    let similarity = text.trim().parse().ok().filter(|it| *it > 0.0 && *it <= 1.0);
    similarity.ok_or_else(|| "expected a similarity above 0 and at most 1, such as 0.98".to_owned())
}

fn parse_size(text: &str) -> Result<Resolution, String> {
    match text {
        "256" => Ok(Resolution::R256),
        "512" => Ok(Resolution::R512),
        _ => Err("expected 256 or 512".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["plan_sharing"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_sampler_is_that_of_imagenet256() {
        let line = "--steps 9 --guidance 1.5 --interval 0.1,0.9 --last-step 0.1 --timeshift 2 --solver adams3 \
                    --seed 4 --rng torch --dtype bf16 --weights w --preset p --vae v --batch 3 --threads 2";
        let words = ["imagenet256", "--images", "1", "--out", "x.png"].into_iter();
        let expected = SamplerArgs::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        let ours = parse(line).unwrap().sampler("x.png".into());
        assert_eq!(format!("{ours:?}"), format!("{expected:?}"));

        let words = ["imagenet256", "--images", "1", "--batch", "2", "--out", "x.png"];
        let defaults = SamplerArgs::try_parse_from(words).unwrap();
        let ours = parse("").unwrap().sampler("x.png".into());
        assert_eq!(format!("{ours:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn targets_are_ratios_then_qualities_each_once() {
        let args = parse("--quality 0.98,0.9 --budgets 0.5,-0,0 --budgets 0.50").unwrap();
        let names: Vec<String> = args.targets().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["0.5", "0", "quality-0.98", "quality-0.9"]);
        let args = parse("").unwrap();
        assert_eq!(args.targets(), [0.5, 0.66, 0.75, 0.8, 0.83, 0.87].map(Target::Ratio));
        assert_eq!((args.images, args.num_test_images(), args.steps), (8, 8, 50));
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--budgets 1", "from 0 to below 1"),
            ("--budgets -0.1", "from 0 to below 1"),
            ("--budgets 0.5,,0.8", "such as 0.8"),
            ("--budgets NaN", "such as 0.8"),
            ("--quality 0", "above 0 and at most 1"),
            ("--quality 1.01", "above 0 and at most 1"),
            ("--quality high", "such as 0.98"),
            ("--images 0", "1..=100000"),
            ("--test-images -1", "--test-images"),
            ("--size 128", "256 or 512"),
            ("--share none", "--share"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
