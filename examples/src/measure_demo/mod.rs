//! The program `measure_demo`: a metric that needs no download, on the demo; `train_classifier` comes first.
//!
//! [`mod@settings`] lists what is measured, [`measure`] draws and compares, [`tables`] says what came of it. Each
//! measured setting is a line of a file, so a run that was stopped goes on after it.

pub mod measure;
pub mod settings;
pub mod tables;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ddt_adapters::hub::HubOptions;
use ddt_checkpoint::sha256_file;

use crate::{atomic_file, cli, cli::Resolution, generate::Interrupted, job::Job, program, progress::Cancel};
use measure::{Bench, Measured};
use settings::{Setting, settings};

/// Measures the demo network by what a small classifier sees in its images.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Args {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Weights of the classifier, as `train_classifier` writes them
    #[arg(long, default_value = "out/cifar10-classifier.safetensors")]
    pub classifier: PathBuf,
    /// Images of each setting
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(200..=100_000))]
    pub images: u32,
    /// Steps of the sharing table
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// Steps of the guidance sweep
    #[arg(long, default_value_t = 25)]
    pub sweep_steps: usize,
    /// Weights to measure instead of the embedded demo
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Folder of the results; the same folder goes on with them
    #[arg(long, default_value = "out/measure-demo")]
    pub out: PathBuf,
    /// Threads to compute with; 0 is one for each core
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
}

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.threads, |hub, cancel| run(&args, hub, cancel))
}

/// Measures what is not measured yet, and writes tables and plots of all of it.
///
/// # Errors
///
/// Photos or weights that cannot be read, a folder that cannot be written, results of other settings;
/// [`Interrupted`] after `cancel`.
pub fn run(args: &Args, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let job = Job::prepare(&sampler(args)?, Resolution::R256, hub)?;
    let model = job.load()?;
    let header = serde_json::json!({
        "images": args.images, "steps": args.steps, "sweep_steps": args.sweep_steps,
        "network": model.identity.network, "classifier": sha256_file(&args.classifier).context("--classifier")?,
    });
    let mut results = Results::open(&args.out.join("results.jsonl"), &header)?;
    let mut bench = Bench::new(args, &job, &model, cancel)?;
    for setting in settings(args.steps, args.sweep_steps) {
        if results.get(&setting).is_none() {
            if cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let measured = bench.measure(&setting)?;
            crate::progress::say(&format!("{}: {measured}", setting.key()));
            results.add(&setting, measured)?;
        }
    }
    let text = tables::markdown(args, &results)?;
    atomic_file::write(&args.out.join("tables.md"), text.as_bytes())?;
    atomic_file::write(&args.out.join("sharing.svg"), tables::sharing_plot(args, &results)?.as_bytes())?;
    atomic_file::write(&args.out.join("guidance.svg"), tables::guidance_plot(args, &results)?.as_bytes())?;
    Ok(format!("{text}\nwrote tables and plots to {}", args.out.display()))
}

/// The command line of a sampler with these weights.
fn sampler(args: &Args) -> Result<cli::Args> {
    let weights = args.weights.as_ref().map_or("demo".to_owned(), |it| it.display().to_string());
    let steps = args.steps.to_string();
    let out = args.out.join("unused.png").display().to_string();
    let words = ["imagenet256", "--weights", &weights, "--steps", &steps, "--out", &out];
    Ok(cli::Args::try_parse_from(words)?)
}

/// What was measured, one line a setting.
#[derive(Debug)]
pub struct Results {
    file: fs::File,
    lines: Vec<(String, Measured)>,
}

impl Results {
    fn open(path: &Path, header: &serde_json::Value) -> Result<Self> {
        let named = || path.display().to_string();
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(path).with_context(named)?;
        let text = fs::read_to_string(path).with_context(named)?;
        // A line without its end was being written when the program was killed.
        let whole = text.rfind('\n').map_or(0, |it| it + 1);
        file.set_len(whole as u64).with_context(named)?;
        let mut lines = text[..whole].lines();
        match lines.next() {
            None => writeln!(file, "{header}").with_context(named)?,
            Some(line) => {
                let found: serde_json::Value = serde_json::from_str(line).with_context(named)?;
                ensure!(
                    found == *header,
                    "{} holds results of {found}, expected {header}: name another folder with --out",
                    path.display()
                );
            }
        }
        let lines = lines.map(serde_json::from_str).collect::<Result<_, _>>().with_context(named)?;
        Ok(Self { file, lines })
    }

    /// What was measured with a setting.
    #[must_use]
    pub fn get(&self, setting: &Setting) -> Option<&Measured> {
        let key = setting.key();
        self.lines.iter().find(|it| it.0 == key).map(|it| &it.1)
    }

    fn add(&mut self, setting: &Setting, measured: Measured) -> Result<()> {
        let line = (setting.key(), measured);
        writeln!(self.file, "{}", serde_json::to_string(&line)?).context("cannot write the results")?;
        self.file.sync_data().context("cannot write the results")?;
        self.lines.push(line);
        Ok(())
    }
}
