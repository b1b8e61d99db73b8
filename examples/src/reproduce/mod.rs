//! The program `reproduce`: the paper's comparisons of networks, at a scale that two cores train in minutes.
//!
//! [`systems`] says which networks a table compares, [`study`] trains and measures one, [`tables`] says what came
//! of all of them. Each measured run is a line of a file, and each training run a folder: what was stopped goes on.

pub mod study;
pub mod systems;
pub mod tables;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, value_parser};

use crate::{
    atomic_file,
    classifier::{self, network::Classifier},
    generate::Interrupted,
    offline_metric::OfflineMetric,
    program::status,
    progress::{Cancel, say},
    results_file::ResultsFile,
};
use study::{Outcome, Study};
use systems::{BLOCKS, HEAD_DIM, System, Table};

/// What was measured, by [`System::run_name`].
pub type Results = ResultsFile<Outcome>;

/// Trains small networks on CIFAR-10 latents, equal in all but what a table compares, and measures them.
///
/// Killed or stopped at any moment, the same command goes on. Tables share the runs they have in common.
#[derive(Debug, Clone, Parser)]
#[command(name = "reproduce", version)]
pub struct Args {
    /// What to compare
    #[arg(required = true, value_enum)]
    pub tables: Vec<Table>,
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, value_name = "DIR", default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Weights of the classifier, as `train_classifier` writes them [default: those that come with the program]
    #[arg(long, value_name = "PATH")]
    pub classifier: Option<PathBuf>,
    /// Channels of the networks, a multiple of 64; the demo has 256
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u32).range(64..=2048))]
    pub width: u32,
    /// Images that each network sees
    #[arg(long, value_name = "N", default_value_t = 102_400, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub images: u64,
    /// Seeds of each network; more may be asked for later
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=100))]
    pub seeds: u32,
    /// Images drawn with each network, always from the same noise
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = value_parser!(u32).range(200..=100_000))]
    pub samples: u32,
    /// Euler steps to draw them with
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub steps: usize,
    /// Guidance of the second look; the first is without
    #[arg(long, value_name = "SCALE", default_value_t = 4.0)]
    pub guidance: f64,
    /// Folder of runs, results and tables; the same folder goes on with them
    #[arg(long, value_name = "DIR", default_value = "out/reproduce")]
    pub out: PathBuf,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u32).range(0..=1024))]
    pub threads: u32,
}

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    status(Cancel::on_ctrl_c().and_then(|cancel| {
        let threads = args.threads as usize;
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
        run(&args, &cancel)
    }))
}

/// Trains and measures what is not measured yet, and writes a table and a plot of each comparison.
///
/// # Errors
///
/// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
/// [`Interrupted`] after `cancel`, with everything saved.
pub fn run(args: &Args, cancel: &Cancel) -> Result<String> {
    ensure!(
        args.width.is_multiple_of(HEAD_DIM),
        "--width: expected a multiple of {HEAD_DIM}, got {}",
        args.width
    );
    let (classifier, sha256) = classifier::load(args.classifier.as_deref())?;
    let study = Study::new(args)?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("--out: cannot make the folder {}", args.out.display()))?;
    let header = serde_json::json!({
        "width": args.width, "blocks": BLOCKS, "images": args.images, "samples": args.samples,
        "steps": args.steps, "guidance": args.guidance, "classifier": sha256,
    });
    let mut results = Results::open(&args.out.join("results.jsonl"), &header)?;
    measure_missing(args, &study, (classifier, &sha256), &mut results, cancel)?;

    let mut summary = String::new();
    for table in &args.tables {
        let text = tables::markdown(*table, args, &results)?;
        atomic_file::write(&args.out.join(format!("{}.md", table.name())), text.as_bytes())?;
        let plot = tables::plot(*table, args, &study)?;
        atomic_file::write(&args.out.join(format!("{}.svg", table.name())), plot.as_bytes())?;
        summary += &text;
        summary.push('\n');
    }
    Ok(format!("{summary}wrote tables and plots to {}", args.out.display()))
}

/// Seed after seed, so that every network has one before any has two.
fn measure_missing(
    args: &Args,
    study: &Study<'_>,
    classifier: (Classifier, &str),
    results: &mut Results,
    cancel: &Cancel,
) -> Result<()> {
    let systems: Vec<System> = System::of_tables(&args.tables);
    let all = (0..args.seeds).flat_map(|seed| systems.iter().map(move |it| (*it, seed)));
    let missing: Vec<_> = all.filter(|it| results.get(&it.0.run_name(it.1)).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let metric = OfflineMetric::new(&args.photos, classifier, &args.out, cancel)?;
    for (i, (system, seed)) in missing.iter().enumerate() {
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
        let name = system.run_name(*seed);
        say(&format!("{name}, run {} of {}", i + 1, missing.len()));
        let outcome = study.run(system, *seed, &metric, cancel)?;
        say(&format!("{name}: {outcome}"));
        results.add(name, outcome)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split_whitespace());
        assert_eq!(parse("reproduce split decoder").unwrap().tables, [Table::Split, Table::Decoder]);
        for (line, expected) in [
            ("reproduce", "<TABLES>"),
            ("reproduce splits", "split"),
            ("reproduce split --seeds 0", "1..=100"),
            ("reproduce split --samples 10", "200..=100000"),
            ("reproduce split --width 32", "64..=2048"),
        ] {
            let message = parse(line).unwrap_err().to_string();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}
