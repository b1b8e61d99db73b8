//! Compares this project with what independent implementations computed.
//!
//! A fixture is a safetensors file whose metadata names its `kind`. Each kind is one function that
//! computes the fixture's outputs from its inputs; comparing and reporting are done here, once.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use compare::{Comparison, Report};
use fixture::Fixture;

mod autoencoder;
mod compare;
mod crop;
mod dinov2;
mod fixture;
mod inception;
mod metrics;
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
    /// Type of the networks' weights: f32, or bf16 for kinds that are networks, at a tolerance of its own
    #[arg(long, default_value = "f32")]
    dtype: Type,
}

/// Type of a network's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Type {
    F32,
    Bf16,
}

/// Relative RMS that bf16 weights may cost: eight bits of mantissa through some blocks.
const BF16: f64 = 5e-2;

/// Kinds that can be computed with bf16 weights.
const NETWORKS: [&str; 4] = ["ddt_forward", "decoder_only_forward", "checkpoint_forward", "ddt_sample"];

type Kind = fn(&Fixture) -> Result<Vec<Comparison>>;

const KINDS: &[(&str, Kind)] = &[
    ("ddt_forward", network::ddt_forward),
    ("decoder_only_forward", network::decoder_only_forward),
    ("checkpoint_forward", network::checkpoint_forward),
    ("sit_forward", network::sit_forward),
    ("repa_sit_forward", network::repa_sit_forward),
    ("ddt_sample", sampling::ddt_sample),
    ("adamw_ema", training::adamw_ema),
    ("repa_step", training::repa_step),
    ("torch_randn", noise::torch_randn),
    ("vae_kl", autoencoder::vae_kl),
    ("center_crop", crop::center_crop_kind),
    ("tae", autoencoder::tae),
    ("dinov2", dinov2::dinov2),
    ("inception", inception::inception),
    ("sharing_states", sharing::sharing_states),
    ("sharing_plan", sharing::sharing_plan),
    ("metrics", metrics::metrics),
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = compare_files(&args.files, args.dtype);
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare_files(files: &[PathBuf], dtype: Type) -> Report {
    let mut report = Report::default();
    for path in files {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        match compare_file(path, dtype) {
            Ok(comparisons) => comparisons.iter().for_each(|it| report.add(&name, it)),
            Err(error) => report.fail(&name, &format!("{error:#}")),
        }
    }
    report
}

fn compare_file(path: &std::path::Path, dtype: Type) -> Result<Vec<Comparison>> {
    let fixture = Fixture::open(path)?.computed_in(dtype);
    let kind = fixture.text("kind")?;
    let Some((_, compute)) = KINDS.iter().find(|it| it.0 == kind) else {
        let known: Vec<&str> = KINDS.iter().map(|it| it.0).collect();
        bail!("expected one of the kinds {}, got {kind:?}", known.join(", "));
    };
    if dtype == Type::Bf16 && !NETWORKS.contains(&kind) {
        bail!("expected one of the kinds {} with --dtype bf16, got {kind:?}", NETWORKS.join(", "));
    }
    let comparisons = compute(&fixture).with_context(|| format!("kind {kind}"))?;
    if comparisons.is_empty() {
        bail!("the fixture holds nothing to compare");
    }
    Ok(comparisons)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_fixture_of_a_known_kind_passes() {
        let folder = crate::tidy::root().join("../shared/fixtures");
        let Ok(entries) = std::fs::read_dir(&folder) else {
            // Straight to stderr: the harness would capture a print of a test that passes.
            std::io::stderr().write_all(b"skipped: there are no fixtures\n").unwrap();
            return;
        };
        let known = |path: &PathBuf| {
            path.extension().is_some_and(|it| it == "safetensors")
                && Fixture::open(path).is_ok_and(|it| {
                    it.text("kind").is_ok_and(|kind| KINDS.iter().any(|known| known.0 == kind))
                })
        };
        let mut files: Vec<PathBuf> = entries.map(|it| it.unwrap().path()).filter(known).collect();
        files.sort();
        let report = compare_files(&files, Type::F32);
        assert_eq!(report.failed, 0);
        assert!(report.passed >= files.len());
    }

    #[test]
    fn the_golden_call_passes_and_what_is_no_fixture_fails() {
        let golden = crate::tidy::root().join("crates/ddt-model/tests/golden/ddt_tiny.safetensors");
        let report = compare_files(
            &[golden.clone(), "absent".into(), crate::tidy::root().join("README.md")],
            Type::F32,
        );
        assert_eq!((report.passed, report.failed), (3, 2));
        let report = compare_files(std::slice::from_ref(&golden), Type::Bf16);
        assert_eq!((report.passed, report.failed), (3, 0));
        let other = tempfile::tempdir().unwrap();
        let path = other.path().join("other.safetensors");
        let metadata = [("kind".to_owned(), "unheard_of".to_owned())].into();
        let tensors =
            [("x".to_owned(), candle_core::Tensor::new(1f32, &candle_core::Device::Cpu).unwrap())].into();
        ddt_files::write_safetensors(&path, &tensors, &metadata).unwrap();
        assert_eq!(compare_files(&[path], Type::F32).failed, 1);
    }
}
