//! The program `train`: loads the frozen networks that settings name, trains, and shows what the run reports.

pub mod frozen;
pub mod report;

use std::path::Path;

use anyhow::Result;
use ddt_train::{Settings, TrainError};

use crate::{generate::Interrupted, progress::Cancel};
use report::Report;

/// Trains as the settings state, or resumes the run, and writes the averaged weights to `out`.
///
/// # Errors
///
/// Settings, photos or weights that do not fit; [`Interrupted`] after `cancel`, with everything saved.
pub fn run(settings: &Settings, out: &Path, cancel: &Cancel) -> Result<String> {
    let frozen = frozen::load(settings)?;
    let mut report = Report::new(settings);
    let outcome = ddt_train::run(settings, &frozen, out, &mut |event| {
        report.show(&event);
        cancel.flow()
    });
    match outcome {
        Ok(_) => {}
        Err(TrainError::Stopped) => return Err(Interrupted.into()),
        Err(other) => return Err(other.into()),
    }
    Ok(match report.plot() {
        Some(plot) => format!("wrote {} and {}", out.display(), plot.display()),
        None => format!("wrote {}", out.display()),
    })
}
