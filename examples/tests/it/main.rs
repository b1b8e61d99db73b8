//! The programs with the demo weights or small ones, through the functions behind `main`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod comparing;
mod evaluating;
mod training;

use std::path::{Path, PathBuf};

use clap::Parser;
use ddt_adapters::hub::HubOptions;
use ddt_examples::cli::{Args, Resolution};
use ddt_examples::imagenet;
use ddt_examples::progress::Cancel;

/// A hub that has nothing in its cache and may not be asked.
fn no_hub(folder: &Path) -> HubOptions {
    let endpoint = "https://hub.invalid".to_owned();
    HubOptions { cache: folder.join("cache"), endpoint, token: None, offline: true }
}

/// The arguments of `line`, with `--out` in `folder` unless it says otherwise.
fn args(folder: &Path, line: &[&str]) -> Args {
    let out = out(folder);
    let mut words = vec!["imagenet256", "--out", out.to_str().unwrap()];
    if line.contains(&"--out") {
        words.truncate(1);
    }
    Args::try_parse_from(words.into_iter().chain(line.iter().copied())).unwrap()
}

fn out(folder: &Path) -> PathBuf {
    folder.join("grid.png")
}

/// The summary, or the message of the error.
fn run(folder: &Path, line: &[&str]) -> Result<String, String> {
    let args = args(folder, line);
    imagenet::run(&args, Resolution::R256, &no_hub(folder), &Cancel::default())
        .map_err(|error| format!("{error:#}"))
}
