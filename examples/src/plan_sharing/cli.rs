//! The command line of `plan_sharing`.

use std::path::PathBuf;

use clap::{Parser, value_parser};

use super::plans::Target;
use crate::cli::{Args as ImagenetArgs, Resolution};
use crate::sampler_args::SamplerArgs;
use crate::sharing_choice::SharingChoice;

const EXAMPLES: &str = "\
Examples:
  plan_sharing                                       plans for imagenet256's defaults
  plan_sharing --steps 250 --quality 0.98,0.95       and the cheapest plans this similar
  plan_sharing --steps 250 --worst-quality 0.9       and one that is this similar at every step
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
    pub ratios: Vec<f64>,
    /// Mean similarities to plan for, each in (0, 1]: the fewest runs of the encoder that reach it
    /// [default: none]
    #[arg(long, value_name = "SIMILARITY,...", value_delimiter = ',', value_parser = parse_quality)]
    pub quality: Vec<f64>,
    /// Similarities to plan for that every single step must reach, each in (0, 1]: the fewest runs that do
    /// [default: none]
    #[arg(long, value_name = "SIMILARITY,...", value_delimiter = ',', value_parser = parse_quality)]
    pub worst_quality: Vec<f64>,
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
    #[arg(long, value_name = "256|512", default_value = "256")]
    pub size: Resolution,
    /// Images drawn at once to compare plans; small batches take turns more often, for steadier times.
    /// The similarity is measured one image at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// How to sample, and with which weights.
    #[command(flatten)]
    pub sampler: SamplerArgs,
}

impl Args {
    /// What to plan for: ratios, then qualities, then worst qualities, each value once.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        let ratios = self.ratios.iter().copied().map(Target::Ratio);
        let qualities = self.quality.iter().copied().map(Target::Quality);
        let worst = self.worst_quality.iter().copied().map(Target::WorstQuality);
        let mut targets = Vec::new();
        for target in ratios.chain(qualities).chain(worst) {
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
    pub fn imagenet(&self, picture: PathBuf) -> ImagenetArgs {
        ImagenetArgs::of(&self.sampler, Some(self.batch), SharingChoice::None, picture)
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
        // What is flattened into it leaves its own description.
        let about = Args::command().get_about().unwrap().to_string();
        assert!(about.starts_with("Measures how alike"), "{about}");
    }

    #[test]
    fn the_sampler_is_that_of_imagenet256() {
        let others = "--steps 9 --guidance -1.5 --seed 4 --weights w --vae v --batch 3 --threads 2";
        for (line, its_defaults) in [("", "--batch 2"), (others, "")] {
            let words = format!("imagenet256 --images 1 --out x.png {its_defaults} {line}");
            let expected = ImagenetArgs::try_parse_from(words.split_whitespace()).unwrap();
            let ours = parse(line).unwrap().imagenet("x.png".into());
            assert_eq!(format!("{ours:?}"), format!("{expected:?}"));
        }
    }

    #[test]
    fn targets_are_ratios_then_qualities_each_once() {
        let args = parse("--worst-quality 0.9 --quality 0.98,0.9 --ratios 0.5,-0,0 --ratios 0.50").unwrap();
        let names: Vec<String> = args.targets().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["0.5", "0", "quality-0.98", "quality-0.9", "worst-0.9"]);
        let args = parse("").unwrap();
        assert_eq!(args.targets(), [0.5, 0.66, 0.75, 0.8, 0.83, 0.87].map(Target::Ratio));
        assert_eq!((args.images, args.num_test_images(), args.sampler.steps), (8, 8, 50));
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--ratios 1", "from 0 to below 1"),
            ("--ratios -0.1", "from 0 to below 1"),
            ("--ratios 0.5,,0.8", "such as 0.8"),
            ("--ratios NaN", "such as 0.8"),
            ("--quality 0", "above 0 and at most 1"),
            ("--quality 1.01", "above 0 and at most 1"),
            ("--quality high", "such as 0.98"),
            ("--worst-quality 2", "above 0 and at most 1"),
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
