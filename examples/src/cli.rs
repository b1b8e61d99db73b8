//! The command line of `imagenet256` and `imagenet512`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use ddt_flow::NoiseSource;
use serde::Serialize;

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
    /// [default: 40 with the demo; of ImageNet 4 at 256 px, 1 at 512 px]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: Option<u32>,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Solver steps from noise to image
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
    /// Seed of all noise; the image of a class in a column depends on nothing else
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Where noise comes from: a counter, or PyTorch's CPU generator seeded with
    /// SEED + 1000000 class + column
    #[arg(long, value_enum, default_value_t = Rng::Counter)]
    pub rng: Rng,
    /// Number type of the network; 16 bits halve its memory
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What to compute on; this build has cpu alone
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
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
    /// Steps that skip the condition encoder: none; uniform:R runs it at every R-th step; ratio:X skips
    /// a share X of the steps, evenly; or a plan file
    #[arg(long, value_name = "none|uniform:R|ratio:X|PLAN.json", default_value = "none")]
    pub share: SharingChoice,
    /// The PNG file to write [default: out/imagenet256.png, or out/imagenet512.png]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

impl Args {
    /// Reads the command line of the program at `resolution`; ends the program for `--help`, `--version`
    /// and (with status 2) for what is no command line.
    #[must_use]
    pub fn parse_for(resolution: Resolution) -> Self {
        let command = Self::command().name(resolution.program()).bin_name(resolution.program());
        let mut matches = command.get_matches();
        Self::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit())
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

/// `--solver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SolverName {
    /// Order 1, as in the paper's tables
    Euler,
    /// Adams-Bashforth of order 2
    Adams2,
    /// Adams-Bashforth of order 3
    Adams3,
    /// Adams-Bashforth of order 4
    Adams4,
}

impl SolverName {
    /// The name by which `ddt_flow` knows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Adams2 => "adams2",
            Self::Adams3 => "adams3",
            Self::Adams4 => "adams4",
        }
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

pub(crate) fn parse_interval(text: &str) -> Result<(f64, f64), String> {
    let number = |part: &str| part.trim().parse::<f64>().ok();
    let bounds = text.split_once(',').and_then(|(low, high)| Some((number(low)?, number(high)?)));
    bounds.ok_or_else(|| "expected two numbers with a comma between, such as 0.3,1".to_owned())
}

fn parse_device(text: &str) -> Result<String, String> {
    match text {
        "cpu" => Ok(text.to_owned()),
        _ => Err("expected cpu, the only device of this build; leave --device out".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["imagenet256"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_become_values() {
        let args =
            parse("--class 1,cat --class 3-5 --interval -1,0.5 --guidance -2.5 --weights x.ckpt --vae auto");
        let args = args.unwrap();
        assert_eq!(args.classes, ["1,cat", "3-5"]);
        assert_eq!(args.interval, (-1.0, 0.5));
        assert_eq!(args.guidance, Some(-2.5));
        assert_eq!(args.weights, WeightsChoice::File("x.ckpt".into()));
        assert_eq!(args.vae, VaeChoice::Auto);
        let args = parse("").unwrap();
        assert_eq!((args.steps, args.interval, args.last_step), (50, (0.3, 1.0), 0.04));
        assert_eq!(args.weights, WeightsChoice::Auto);
        assert_eq!(args.share, SharingChoice::None);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("--interval 0.3", "two numbers"),
            ("--interval a,b", "such as 0.3,1"),
            ("--device cuda", "expected cpu"),
            ("--images 0", "1..=1000000"),
            ("--batch 0", "1..=65536"),
            ("--threads 5000", "0..=1024"),
            ("--solver heun", "adams2"),
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

    #[test]
    fn solvers_are_known_to_the_library() {
        for name in SolverName::value_variants() {
            assert_eq!(ddt_flow::solver_by_name(name.as_str()).unwrap().name(), name.as_str());
        }
    }
}
