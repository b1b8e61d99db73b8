//! What all programs have in common: threads, Ctrl-C, and an exit status.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ddt_adapters::hub::HubOptions;

use crate::generate::Interrupted;
use crate::progress::{Cancel, INTERRUPTED, say};

/// Runs a program on `threads` threads (0 is one for each core) and prints the summary it returns.
///
/// The status is 0, 1 for an error, 130 after Ctrl-C.
#[must_use]
pub fn main(threads: u32, run: impl FnOnce(&HubOptions, &Cancel) -> Result<String>) -> ExitCode {
    ddt_kernels::retain_freed_memory();
    status(Cancel::on_ctrl_c().and_then(|cancel| {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global().context("--threads")?;
        run(&HubOptions::from_env(), &cancel.end_at_once())
    }))
}

/// Prints a summary or an error, and says what the program's status is.
#[must_use]
pub fn status(outcome: Result<String>) -> ExitCode {
    match outcome {
        Ok(summary) => {
            // A reader that went away is no reason to fail.
            writeln!(std::io::stdout(), "{summary}").ok();
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<Interrupted>() => {
            say(&error.to_string());
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
