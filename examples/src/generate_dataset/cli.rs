//! The command line of `generate_dataset`.

use std::path::PathBuf;

use clap::{Parser, value_parser};

use crate::cli::{Args as ImagenetArgs, Resolution};
use crate::sampler_args::SamplerArgs;
use crate::sharing_choice::SharingChoice;

const EXAMPLES: &str = "\
Examples:
  generate_dataset --count 1000                      a thousand images of the demo, in a minute or so
  generate_dataset --weights hub --steps 250         the 50,000 images of the paper's tables
  srun --ntasks 8 generate_dataset --weights hub     eight processes fill one archive (also torchrun, mpirun)
  generate_dataset --weights hub --device cuda:1 --dtype bf16 --rank 1 --world-size 8
                                                     one of eight, each on a GPU of its own
The same command goes on where it was stopped or killed, with any number of processes, and ends with the
same bytes.";

/// Draws a data set with equally many images of each class into one npz file, which the usual evaluation
/// scripts read.
///
/// Rows stand in an order drawn from the seed. Batches are on the disk when they are counted as finished:
/// until the archive is complete they lie in a folder beside it, whose name ends in .work.
#[derive(Debug, Clone, Parser)]
#[command(name = "generate_dataset", version, after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Images to draw; papers compare 50,000
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub count: u32,
    /// Classes to draw: number, range of numbers, synset or name; repeat it or separate by commas
    /// [default: all classes of the weights]
    #[arg(long = "class", value_name = "CLASS")]
    pub classes: Vec<String>,
    /// The archive to write; its description goes beside it, with .json after the name
    /// [default: out/dataset.npz]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Folder to write the images to as PNG files too, named by row, when the archive is complete; it is made
    /// if it is missing [default: none]
    #[arg(long, value_name = "DIR")]
    pub png_folder: Option<PathBuf>,
    /// Images drawn at once; part of the job, for it may change a pixel by one grey level
    /// [default: 40 with the demo; of ImageNet 4 at 256 px, 1 at 512 px, on a GPU 64 and 32]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    pub batch: Option<u32>,
    /// Number of this process, from 0 [default: what torchrun, mpirun or SLURM say, else 0]
    #[arg(long, value_name = "RANK", requires = "world_size")]
    pub rank: Option<usize>,
    /// Number of processes that fill the archive [default: what torchrun, mpirun or SLURM say, else 1]
    #[arg(long, value_name = "N", requires = "rank")]
    pub world_size: Option<usize>,
    /// Side of the images in pixels, 256 or 512, which fixes the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256")]
    pub size: Resolution,
    /// How to sample, and with which weights.
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// Steps that skip the condition encoder: none; uniform:R runs it at every R-th step; ratio:X skips
    /// a share X of the steps, evenly; or a plan file
    #[arg(long, value_name = "none|uniform:R|ratio:X|PLAN.json", default_value = "none")]
    pub share: SharingChoice,
}

impl Args {
    /// The command line of `imagenet256` with the same sampler, writing to `out`.
    #[must_use]
    pub fn imagenet(&self, out: PathBuf) -> ImagenetArgs {
        ImagenetArgs::of(&self.sampler, self.batch, self.share.clone(), out)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["generate_dataset"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
        // What is flattened into it leaves its own description.
        let about = Args::command().get_about().unwrap().to_string();
        assert!(about.starts_with("Draws a data set"), "{about}");
    }

    #[test]
    fn the_sampler_is_that_of_imagenet256() {
        let others =
            "--steps 9 --guidance -1.5 --seed 4 --weights w --vae v --batch 3 --threads 2 --share ratio:0.5";
        for line in ["", others] {
            let words = format!("imagenet256 --images 1 --out x.npz {line}");
            let expected = ImagenetArgs::try_parse_from(words.split_whitespace()).unwrap();
            let ours = parse(line).unwrap().imagenet("x.npz".into());
            assert_eq!(format!("{ours:?}"), format!("{expected:?}"));
        }
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--count 0", "1..=100000000"),
            ("--count -3", "--count"),
            ("--rank 0", "--world-size"),
            ("--world-size 2", "--rank"),
            ("--rank -1 --world-size 2", "--rank"),
            ("--size 64", "256 or 512"),
            ("--batch 0", "1..=65536"),
            ("--images 3", "--images"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
