//! The command line of `analyse`.

use std::path::PathBuf;

use clap::{Parser, value_parser};

use crate::cli::{Args as ImagenetArgs, Resolution};
use crate::sampler_args::{SamplerArgs, SolverName};
use crate::sharing_choice::SharingChoice;

const EXAMPLES: &str = "\
Examples:
  analyse                                            the demo network
  analyse --images 64 --step-counts 5,10,20,40,80    steadier curves
  analyse --solvers euler,adams2,adams4,dopri5       other solvers";

/// Draws the paper's analyses for a network.
///
/// Writes the spectrum of noisy latents and the frequency that survives at each time (eq. 1, appendix D),
/// and the errors of solvers by their number of steps and by time shift (Fig. 4, with the distance from a
/// fine reference in the place of FID). The latents are the network's own samples, drawn as --steps and
/// --solver say. How alike self-conditions are (Fig. 5) is drawn by `ddt plan`.
#[derive(Debug, Clone, Parser)]
#[command(name = "analyse", version, after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Images to measure on, of classes spread over the table
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..=100_000))]
    pub images: u32,
    /// Numbers of steps to measure solvers with
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "5,6,8,10,12,16,24,32,48",
          value_parser = parse_steps)]
    pub step_counts: Vec<usize>,
    /// Solvers to measure
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "euler,heun,adams2,adams4,dpm2"
    )]
    pub solvers: Vec<SolverName>,
    /// Time shifts to measure, with adams2
    #[arg(long, value_name = "SHIFT,...", value_delimiter = ',', default_value = "1,1.5,2,3")]
    pub timeshifts: Vec<f64>,
    /// Folder to write into; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/analysis")]
    pub out: PathBuf,
    /// Side of the images in pixels, 256 or 512, which fixes the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256")]
    pub size: Resolution,
    /// Images drawn at once
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// How to sample, and with which weights.
    #[command(flatten)]
    pub sampler: SamplerArgs,
}

impl Args {
    /// Names of the solvers.
    #[must_use]
    pub fn solvers(&self) -> Vec<&str> {
        self.solvers.iter().map(SolverName::as_str).collect()
    }

    /// The command line of `imagenet256` with the same sampler, without sharing; it writes to `picture`.
    #[must_use]
    pub fn imagenet(&self, picture: PathBuf) -> ImagenetArgs {
        ImagenetArgs::of(&self.sampler, Some(self.batch), SharingChoice::None, picture)
    }
}

fn parse_steps(text: &str) -> Result<usize, String> {
    let steps = text.trim().parse().ok().filter(|it| (1..=10_000).contains(it));
    steps.ok_or_else(|| "expected a number of steps from 1 to 10000".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["analyse"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
        let args = parse("--solvers adams,dopri5:1e-6 --step-counts 3,5").unwrap();
        assert_eq!(args.solvers(), ["adams2", "dopri5:1e-6"]);
        assert_eq!(args.step_counts, [3, 5]);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--step-counts 0", "from 1 to 10000"),
            ("--solvers heun3", "must be one of"),
            ("--images 0", "1..=100000"),
            ("--timeshifts x", "--timeshifts"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
