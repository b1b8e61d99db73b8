//! The command line of `evaluate`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum, value_parser};

const EXAMPLES: &str = "\
Examples:
  evaluate out/dataset.npz VIRTUAL_imagenet256_labeled.npz --weights pt_inception-2015-12-05-6726825d.pth
  evaluate generated-photos/ photos/ --extractor dinov2 --weights dinov2_vitl14_pretrain.pth
  evaluate out/dataset.npz out/cifar10/train --extractor cifar10-classifier
  evaluate --explain ours.json theirs.json
Features are kept by the content of the images: what was stopped goes on, what was measured is not measured again.";

/// Which network makes features of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExtractorChoice {
    /// TensorFlow's Inception of 2015, which FID, sFID and the Inception Score are defined by
    Inception,
    /// DINOv2, whose Fréchet distance is known as FD-DINOv2
    Dinov2,
    /// The small classifier that comes with the program, for images of CIFAR-10's classes
    Cifar10Classifier,
}

/// Compares generated images with reference images by what a network sees in them.
///
/// A number is called fid only if counts, reference and evaluator are those of a named protocol; otherwise it
/// is called frechet_distance, with the reasons.
#[derive(Debug, Clone, Parser)]
#[command(name = "evaluate", version, after_help = EXAMPLES)]
pub struct Args {
    /// The generated images: an npz file with arr_0 (uint8, N x H x W x 3), or a folder of JPEG and PNG files
    #[arg(value_name = "SAMPLES", required_unless_present = "explain")]
    pub samples: Option<PathBuf>,
    /// What to compare with: the same, or an npz file with mu and sigma such as ADM's reference batches
    #[arg(value_name = "REFERENCES", required_unless_present = "explain")]
    pub references: Option<PathBuf>,
    /// Which network makes features
    #[arg(long, value_enum, default_value_t = ExtractorChoice::Inception)]
    pub extractor: ExtractorChoice,
    /// Weights of that network (safetensors, or PyTorch's zip format); cifar10-classifier needs none
    #[arg(long, value_name = "PATH")]
    pub weights: Option<PathBuf>,
    /// What to make features on: cpu; in a build with GPUs (docs/CUDA.md) inception also takes cuda, or cuda:N,
    /// GPU N from 0
    #[arg(long, default_value = "cpu", value_parser = crate::gpu::parse)]
    pub device: String,
    /// Protocol that the numbers must follow to bear its names: adm-imagenet-256, adm-imagenet-512 or none
    /// [default: that of the samples' size with inception, else none]
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<String>,
    /// Neighbour that the radii of precision and recall reach to
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1024))]
    pub neighbourhood: u32,
    /// Consecutive rows that one split of the score has
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = value_parser!(u32).range(1..))]
    pub split_size: u32,
    /// The report to write [default: the name of the samples with .evaluation.json after it]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Folder that keeps features; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/features")]
    pub cache: PathBuf,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// List what differs between two reports, and do nothing else
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = ["samples", "references"])]
    pub explain: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = ["evaluate"].into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
        let args = parse("a.npz b --weights w.pth").unwrap();
        assert_eq!((args.extractor, args.neighbourhood), (ExtractorChoice::Inception, 3));
        assert_eq!(parse("--explain a.json b.json").unwrap().explain.len(), 2);
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, expected) in [
            ("", "<SAMPLES>"),
            ("a.npz", "<REFERENCES>"),
            ("--explain a.json", "2 values"),
            ("a.npz b.npz --explain a.json b.json", "cannot be used with"),
            ("a.npz b.npz --extractor vgg", "inception, dinov2, cifar10-classifier"),
            ("a.npz b.npz --neighbourhood 0", "1..=1024"),
            ("a.npz b.npz --split-size 0", "not in"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
