//! The program as a user runs it: its exit status, its results, its messages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dataset;
mod evaluate;
mod machine;
mod plan;
mod rae;
mod sample;
#[cfg(all(unix, feature = "serve"))]
mod serve;
mod train;
mod weights;

use std::{
    path::Path,
    process::{Command, Output},
};

/// The outcome of a run.
#[derive(Debug)]
struct Outcome {
    status: i32,
    /// Results.
    stdout: String,
    /// Messages.
    stderr: String,
}

/// A command line in a folder of its own, with an empty hub cache that may not be filled.
fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddt"));
    command.current_dir(folder).args(line.split_whitespace());
    command.env("HF_HUB_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    command
}

fn ddt(folder: &Path, line: &str) -> Outcome {
    let Output { status, stdout, stderr } = command(folder, line).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { status: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
}

/// Names in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a command that must succeed, and returns its result.
#[track_caller]
fn succeed(folder: &Path, line: &str) -> String {
    let outcome = ddt(folder, line);
    assert_eq!(outcome.status, 0, "{line}: {outcome:?}");
    outcome.stdout
}

/// Runs a command that must fail with this status, and words of its message; it has no result.
#[track_caller]
fn refuse(folder: &Path, line: &str, status: i32, expected: &[&str]) {
    let outcome = ddt(folder, line);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (status, ""), "{line}: {outcome:?}");
    // No reason is said twice.
    let parts: Vec<&str> = outcome.stderr.trim_end().split(": ").collect();
    assert!(parts.windows(2).all(|it| it[0] != it[1]), "{line}: {outcome:?}");
    for part in expected {
        assert!(outcome.stderr.contains(part), "{line}: expected {part:?} in {outcome:?}");
    }
}
