//! The paper's analyses of one network, as figures and numbers.

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::value_parser;
use ddt::{
    Image, Pipeline, SolverName,
    flow::{Guidance, LinearPath, NoiseSource, Solver, TimeGrid, solver_by_name},
    model::SampleOptions,
};
use serde_json::json;

use crate::{
    figures::{self, Spectra, error_plot, fmax_plot, spectrum_plot},
    spectrum::latent_spectrum,
    study::{Folder, News, OnNews, Subject, tell},
    sweep::{sweep, sweep_settings},
};

/// Times of the spectra of noisy latents.
const TIMES: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// Solver of the reference from which errors are measured.
const REFERENCE: &str = "dopri5:1e-6";

/// Files that are written.
const FILES: [&str; 5] = ["spectrum.svg", "fmax.svg", "solvers.svg", "timeshift.svg", "analysis.json"];

/// Draws the paper's analyses for a network.
///
/// Writes the spectrum of noisy latents and the frequency that survives at each time (eq. 1, appendix D), and the
/// errors of solvers by their number of steps and by time shift (Fig. 4, with the distance from a fine reference
/// instead of FID). The latents are the network's own samples.
#[derive(Debug, Clone, clap::Args)]
pub struct Analyses {
    /// Images to measure on, of classes spread over the table
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..=100_000))]
    pub images: u32,
    /// Numbers of steps to measure solvers with
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "5,6,8,10,12,16,24,32,48",
          value_parser = parse_steps)]
    pub step_counts: Vec<usize>,
    /// Solvers to measure
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "euler,heun,adams2,adams4,dpm2"
    )]
    pub solvers: Vec<SolverName>,
    /// Time shifts to measure, with adams2
    #[arg(long, value_name = "SHIFT,...", value_delimiter = ',', default_value = "1,1.5,2,3")]
    pub timeshifts: Vec<f64>,
    /// Folder to write into; it is made if it is missing
    #[arg(long, value_name = "DIR", default_value = "out/analysis")]
    pub out: PathBuf,
}

fn parse_steps(text: &str) -> Result<usize, String> {
    let steps = text.trim().parse().ok().filter(|it| (1..=10_000).contains(it));
    steps.ok_or_else(|| "expected a number of steps from 1 to 10000".to_owned())
}

impl Analyses {
    /// Measures, and writes each figure when its numbers are known; returns the errors of the solvers as a table.
    ///
    /// # Errors
    /// A folder that cannot be written; weights that cannot be read; an unusable time shift;
    /// [`ddt::Error::Cancelled`].
    pub fn run(&self, subject: Subject, on_news: &mut OnNews<'_>) -> Result<String> {
        let Subject { opened, seed, rng, batch } = subject;
        let folder = Folder::open(&self.out, &FILES)?;
        for shift in &self.timeshifts {
            TimeGrid::new(1, None, *shift).context("--timeshifts")?;
        }
        let pipeline = opened.load()?;
        let images = Image::spread(self.images, pipeline.classes().len(), 0);
        let sampler = Sampler { pipeline: &pipeline, images: &images, seed, rng, batch };

        tell(on_news, News::Message(format!("generating {} latents for their spectrum", images.len())))?;
        let usual = pipeline.sample_options(None);
        let (data, _) = sampler.latents(usual.solver, &usual.grid, usual.guidance, on_news)?;
        let noisy = TIMES.iter().map(|&t| Ok((t, latent_spectrum(&sampler.noisy(&data, t)?)?)));
        let spectra = Spectra { data: latent_spectrum(&data)?, noisy: noisy.collect::<Result<_>>()? };
        folder.write("spectrum.svg", &spectrum_plot(&spectra))?;
        folder.write("fmax.svg", &fmax_plot(&spectra))?;

        tell(on_news, News::Message(format!("generating the reference with {REFERENCE}")))?;
        // The same guidance at all times: the field that solvers are compared on has no jump.
        let guidance = Guidance::new(usual.guidance.scale(), (-1.0, 2.0))?;
        let reference = solver_by_name(REFERENCE)?;
        let (exact, evaluations) =
            sampler.latents(&*reference, &TimeGrid::new(1, None, 1.0)?, guidance, on_news)?;

        let solvers: Vec<&str> = self.solvers.iter().map(SolverName::as_str).collect();
        let by_solver = sweep_settings(&solvers, &[usual.grid.timeshift()], &self.step_counts);
        let by_shift = sweep_settings(&["adams2"], &self.timeshifts, &self.step_counts);
        let count = by_solver.len() + by_shift.len();
        tell(
            on_news,
            News::Message(format!("measuring {count} combinations of solver, steps and time shift")),
        )?;
        let mut measure =
            |all: &[_]| sweep(all, &exact, |solver, grid| sampler.latents(solver, grid, guidance, on_news));
        let (by_solver, by_shift) = (measure(&by_solver)?, measure(&by_shift)?);
        folder.write("solvers.svg", &error_plot("Error by solver", &by_solver, figures::by_solver))?;
        folder.write(
            "timeshift.svg",
            &error_plot("Error by time shift, adams2", &by_shift, figures::by_timeshift),
        )?;

        let report = json!({
            "program": "ddt study analyses",
            "pipeline": pipeline.config(),
            "seed": seed,
            "rng": rng,
            "images": images.len(),
            "guidance": guidance,
            "reference": { "solver": REFERENCE, "evaluations": evaluations },
            "spectrum": spectra.to_json(),
            "solvers": figures::to_json(&by_solver),
            "timeshifts": figures::to_json(&by_shift),
        });
        folder.write("analysis.json", &serde_json::to_string_pretty(&report)?)?;
        let table = figures::table(&by_solver, &by_shift);
        Ok(format!("{table}wrote {} to {}", FILES.join(", "), self.out.display()))
    }
}

/// The same images by different solvers.
struct Sampler<'a> {
    pipeline: &'a Pipeline,
    images: &'a [Image],
    seed: u64,
    rng: NoiseSource,
    batch: usize,
}

impl Sampler<'_> {
    /// The latents of the images, and how often the network was evaluated for a batch, on average.
    fn latents(
        &self,
        solver: &dyn Solver,
        grid: &TimeGrid,
        guidance: Guidance,
        on_news: &mut OnNews<'_>,
    ) -> Result<(Tensor, usize)> {
        let options = SampleOptions { grid: grid.clone(), solver, guidance, plan: None };
        let (work, total) = ("generating latents", self.images.len() as u64);
        let (mut latents, mut evaluations, mut done) = (Vec::new(), 0, 0);
        for batch in self.images.chunks(self.batch) {
            let noise = self.pipeline.noise(batch, self.seed, self.rng)?;
            let mut watch = |_: &ddt::Progress<'_>| on_news(News::Progress { work, done, total });
            let sampled = self.pipeline.sample_with(batch, &noise, &options, &mut watch)?;
            evaluations += sampled.calls.decoder;
            done += batch.len() as u64;
            latents.push(sampled.latents);
        }
        let batches = latents.len().max(1);
        Ok((Tensor::cat(&latents, 0)?, evaluations / batches))
    }

    /// Latents mixed with other noise than they were generated from.
    fn noisy(&self, data: &Tensor, t: f64) -> Result<Tensor> {
        let (b, c, h, w) = data.dims4()?;
        let samples: Vec<u64> = (0..b as u64).collect();
        let seed = self.seed.wrapping_add(1);
        let noise = NoiseSource::Counter.batch(seed, &samples, (c, h, w), &Device::Cpu)?;
        let times = Tensor::full(t as f32, b, &Device::Cpu)?;
        Ok(LinearPath.interpolate(data, &noise, &times)?)
    }
}
