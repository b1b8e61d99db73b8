//! The program `analyse`: the paper's analyses of a network, as figures and numbers.
//!
//! [`cli`] reads the command line, [`runs`] draws latents, [`figures`] makes pictures of what was measured.

pub mod cli;
pub mod figures;
pub mod runs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use ddt_adapters::hub::HubOptions;
use ddt_analysis::{latent_spectrum, settings, sweep};
use ddt_flow::TimeGrid;

use crate::job::Job;
use crate::plan_sharing::spread;
use crate::progress::{Cancel, say};
use crate::{atomic_file, gpu, program};
use cli::Args;
use figures::{Spectra, error_plot, fmax_plot, spectrum_plot};
use runs::Runs;

/// Times at which the spectrum of noisy latents is drawn.
const TIMES: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// What the errors of solvers are measured against.
const REFERENCE: &str = "dopri5:1e-6";

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.sampler.threads, |hub, cancel| run(&args, hub, cancel))
}

/// Measures, and writes each figure when its numbers are known.
///
/// # Errors
///
/// A folder that cannot be written; weights that cannot be read;
/// [`Interrupted`](crate::generate::Interrupted); a full disk.
pub fn run(args: &Args, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    args.sampler.check_plain_guidance("analyses are made")?;
    gpu::refuse(&args.sampler)?;
    let folder = Folder::prepare(&args.out).context("--out")?;
    let job = Job::prepare(&args.imagenet(folder.file("images.png")), args.size, hub)?;
    let model = job.load()?;
    let items = spread(args.images, job.weights.classes.len(), 0);
    let runs = Runs::new(&job, &*model.network, &items, cancel)?;

    say(&format!("drawing {} latents for their spectrum", items.len()));
    let (data, _) = runs.draw(&*job.solver, &job.grid, job.guidance)?;
    let spectra = Spectra {
        data: latent_spectrum(&data)?,
        noisy: TIMES
            .iter()
            .map(|&t| Ok((t, latent_spectrum(&runs.noisy(&data, t)?)?)))
            .collect::<Result<_>>()?,
    };
    folder.write("spectrum.svg", spectrum_plot(&spectra)?.as_bytes())?;
    folder.write("fmax.svg", fmax_plot(&spectra)?.as_bytes())?;

    say(&format!("drawing the reference with {REFERENCE}"));
    // The error of a solver is that on one field: guidance acts at all times, or at none.
    let guidance = runs::everywhere(job.guidance)?;
    let reference = ddt_flow::solver_by_name(REFERENCE)?;
    let (exact, evaluations) = runs.draw(reference.as_ref(), &TimeGrid::new(1, None, 1.0)?, guidance)?;

    let by_solver = settings(&args.solvers(), &[job.grid.timeshift()], &args.step_counts);
    let by_shift = settings(&["adams2"], &args.timeshifts, &args.step_counts);
    say(&format!("measuring {} settings", by_solver.len() + by_shift.len()));
    let measure = |all: &[_]| sweep(all, &exact, |solver, grid| runs.draw(solver, grid, guidance));
    let (by_solver, by_shift) = (measure(&by_solver)?, measure(&by_shift)?);
    folder.write("solvers.svg", error_plot("Error by solver", &by_solver, figures::by_solver)?.as_bytes())?;
    folder.write(
        "timeshift.svg",
        error_plot("Error by time shift, adams2", &by_shift, figures::by_timeshift)?.as_bytes(),
    )?;

    let report = serde_json::json!({
        "program": "analyse",
        "network": model.identity.network,
        "seed": job.seed,
        "images": items.len(),
        "guidance": guidance,
        "reference": { "solver": REFERENCE, "evaluations": evaluations },
        "spectrum": spectra.to_json(),
        "solvers": figures::to_json(&by_solver),
        "timeshifts": figures::to_json(&by_shift),
    });
    folder.write("analysis.json", serde_json::to_string_pretty(&report)?.as_bytes())?;
    Ok(format!(
        "{}wrote spectrum.svg, fmax.svg, solvers.svg, timeshift.svg and analysis.json to {}",
        figures::table(&by_solver, &by_shift),
        folder.path.display()
    ))
}

/// The folder that everything is written into.
struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, and checks that each file can be written.
    fn prepare(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| {
            format!("cannot make the folder {}; name another place with --out DIR", path.display())
        })?;
        let folder = Self { path: path.to_owned() };
        for name in ["spectrum.svg", "fmax.svg", "solvers.svg", "timeshift.svg", "analysis.json"] {
            atomic_file::check_writable(&folder.file(name))?;
        }
        Ok(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic_file::write(&self.file(name), bytes)
    }
}
