//! Compares this project with what independent implementations computed.
//!
//! A fixture is a safetensors file whose metadata names its `kind`. Each kind is one function that
//! computes the fixture's outputs from its inputs; comparing and reporting are done here, once.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};

use compare::{Comparison, Report};
use fixture::Fixture;

mod autoencoder;
mod compare;
mod fixture;
mod network;
mod noise;
mod sampling;
mod sharing;
mod training;

/// Compare fixtures with what this project computes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fixture files (.safetensors)
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

type Kind = fn(&Fixture) -> Result<Vec<Comparison>>;

const KINDS: &[(&str, Kind)] = &[
    ("ddt_forward", network::ddt_forward),
    ("decoder_only_forward", network::decoder_only_forward),
    ("checkpoint_forward", network::checkpoint_forward),
    ("ddt_sample", sampling::ddt_sample),
    ("adamw_ema", training::adamw_ema),
    ("torch_randn", noise::torch_randn),
    ("vae_kl", autoencoder::vae_kl),
    ("tae", autoencoder::tae),
    ("sharing_states", sharing::sharing_states),
    ("sharing_plan", sharing::sharing_plan),
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut report = Report::default();
    for path in &args.files {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        match compare_file(path) {
            Ok(comparisons) => comparisons.iter().for_each(|it| report.add(&name, it)),
            Err(error) => report.fail(&name, &format!("{error:#}")),
        }
    }
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare_file(path: &std::path::Path) -> Result<Vec<Comparison>> {
    let fixture = Fixture::open(path)?;
    let kind = fixture.text("kind")?;
    let Some((_, compute)) = KINDS.iter().find(|it| it.0 == kind) else {
        let known: Vec<&str> = KINDS.iter().map(|it| it.0).collect();
        bail!("expected one of the kinds {}, got {kind:?}", known.join(", "));
    };
    let comparisons = compute(&fixture).with_context(|| format!("kind {kind}"))?;
    if comparisons.is_empty() {
        bail!("the fixture holds nothing to compare");
    }
    Ok(comparisons)
}
