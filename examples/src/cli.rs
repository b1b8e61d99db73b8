//! The command line of `imagenet256` and `imagenet512`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::sampler_args::SamplerArgs;
use crate::sharing_choice::SharingChoice;

const EXAMPLES: &str = "\
Examples:
  imagenet256                    big weights if they were fetched, else the demo
  imagenet256 --weights hub      fetch DDT-XL/2 and its autoencoder, then draw
  imagenet256 --class 'golden retriever,387' --images 4 --seed 7
  imagenet256 --share ratio:0.8 --solver adams2 --steps 30";

/// Side of the images, which fixes the published weights and some defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// 256 x 256 pixels.
    R256,
    /// 512 x 512 pixels.
    R512,
}

impl FromStr for Resolution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "256" => Ok(Self::R256),
            "512" => Ok(Self::R512),
            _ => Err("expected 256 or 512".to_owned()),
        }
    }
}

impl Resolution {
    /// Name of the program that draws at this resolution.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::R256 => "imagenet256",
            Self::R512 => "imagenet512",
        }
    }

    /// Height and width of the images, in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self {
            Self::R256 => 256,
            Self::R512 => 512,
        }
    }

    /// The published guidance scale.
    #[must_use]
    pub fn guidance(self) -> f64 {
        match self {
            Self::R256 => 2.0,
            Self::R512 => 3.0,
        }
    }
}

/// Draws images of chosen classes, and writes them as a labelled grid: a row for each class, a column for
/// each image.
///
/// Without the big weights it draws with the small demo network that comes with the program.
#[derive(Debug, Clone, Parser)]
#[command(version, after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Classes to draw: number, range of numbers, synset or name; repeat it or separate by commas
    /// [default: all ten classes of the demo; 207,360,387,974 of ImageNet]
    #[arg(long = "class", value_name = "CLASS")]
    pub classes: Vec<String>,
    /// Images of each class [default: 8 with the demo, 1 with ImageNet weights]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub images: Option<u32>,
    /// Images drawn at once; changes memory and speed, never pictures
    /// [default: 40 with the demo; of ImageNet 4 at 256 px, 1 at 512 px, on a GPU 64 and 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: Option<u32>,
    /// How to sample, and with which weights.
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// Steps that skip the condition encoder: none; uniform:R runs it at every R-th step; ratio:X skips
    /// a share X of the steps, evenly; or a plan file
    #[arg(long, value_name = "none|uniform:R|ratio:X|PLAN.json", default_value = "none")]
    pub share: SharingChoice,
    /// The PNG file to write [default: out/imagenet256.png, or out/imagenet512.png]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

impl Args {
    /// What another program with this sampler draws: all classes, one image each, written to `out`.
    #[must_use]
    pub fn of(sampler: &SamplerArgs, batch: Option<u32>, share: SharingChoice, out: PathBuf) -> Self {
        Self { classes: Vec::new(), images: Some(1), batch, sampler: sampler.clone(), share, out: Some(out) }
    }

    /// Reads the command line of the program at `resolution`; ends the program for `--help`, `--version`
    /// and (with status 2) for what is no command line.
    #[must_use]
    pub fn parse_for(resolution: Resolution) -> Self {
        let command = Self::command().name(resolution.program()).bin_name(resolution.program());
        let mut matches = command.get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler_args::{VaeChoice, WeightsChoice};

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["imagenet256"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
        // What is flattened into it leaves its own description.
        let about = Args::command().get_about().unwrap().to_string();
        assert!(about.starts_with("Draws images of chosen classes"), "{about}");
    }

    #[test]
    fn flags_become_values() {
        let args =
            parse("--class 1,cat --class 3-5 --interval -1,0.5 --guidance -2.5 --weights x.ckpt --vae auto");
        let args = args.unwrap();
        assert_eq!(args.classes, ["1,cat", "3-5"]);
        let sampler = args.sampler;
        assert_eq!(sampler.interval, Some((-1.0, 0.5)));
        assert_eq!(sampler.guidance, Some(-2.5));
        assert_eq!(sampler.weights, WeightsChoice::File("x.ckpt".into()));
        assert_eq!(sampler.vae, VaeChoice::Auto);
        let args = parse("").unwrap();
        let sampler = &args.sampler;
        assert_eq!((sampler.steps, sampler.interval, sampler.last_step), (50, None, 0.04));
        assert_eq!(sampler.weights, WeightsChoice::Auto);
        assert_eq!(args.share, SharingChoice::None);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--interval 0.3", "two numbers"),
            ("--interval a,b", "such as 0.3,1"),
            ("--device cuda", "expected cpu"),
            ("--guided-channels 0", "--guided-channels"),
            ("--weaker", "--weaker"),
            ("--images 0", "1..=1000000"),
            ("--batch 0", "1..=65536"),
            ("--threads 5000", "0..=1024"),
            ("--solver heun3", "adams2"),
            ("--dtype f64", "bf16"),
            ("--rng numpy", "torch"),
            ("--seed -1", "--seed"),
            ("--share uniform:0", "uniform:R"),
            ("--share ratio:1", "ratio:X"),
            ("--sed 1", "--seed"),
            ("stray", "stray"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
