//! Error and speed-up of `--fidelity high` and `fast` relative to the published sampler.

use std::fmt::Write;

use anyhow::Result;
use clap::value_parser;
use ddt::{
    Fidelity, Image,
    model::{DdtConfig, SampleOptions},
    sharing::predicted_speedup_guided,
};

use crate::{
    sharing::{Batches, compare},
    study::{News, OnNews, Subject},
};

/// Networks of the paper that speed is predicted for.
const PREDICTED: [&str; 3] = ["ddt-b2", "ddt-l2", "ddt-xl2"];

/// Measures `--fidelity high` and `fast` against `exact`, the published sampler.
#[derive(Debug, Clone, clap::Args)]
pub struct FidelityStudy {
    /// Images to compare
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = value_parser!(u32).range(2..=100_000))]
    pub images: u32,
}

impl FidelityStudy {
    /// Compares, and returns a table: errors of the latents, speed measured on this network, and speed predicted from
    /// the operations of the paper's networks at 256 px.
    ///
    /// # Errors
    /// A network without two halves; [`ddt::Error::Cancelled`].
    pub fn run(&self, subject: Subject, on_news: &mut OnNews<'_>) -> Result<String> {
        let Subject { opened, seed, rng, batch } = subject;
        let pipeline = opened.load()?;
        let guidance = pipeline.sample_options(None).guidance;
        let choices = [Fidelity::Exact, Fidelity::High, Fidelity::Fast];
        let configs = choices.map(|it| pipeline.config().clone().with_fidelity(it));
        let mut samplers = Vec::with_capacity(configs.len());
        for it in &configs {
            let plan = it.sharing.plan(pipeline.made_for(), it.grid().num_steps())?;
            samplers.push((it.solver.solver()?, plan));
        }
        let ways: Vec<_> = configs
            .iter()
            .zip(&samplers)
            .map(|(config, (solver, plan))| SampleOptions {
                grid: config.grid().clone(),
                solver: &**solver,
                guidance,
                plan: plan.as_ref(),
            })
            .collect();
        let images = Image::spread(self.images, pipeline.classes().len(), 0);
        let mut all = vec![Batches::default(); ways.len()];
        for (index, chunk) in images.chunks(batch).enumerate() {
            let (done, total) = ((index * batch) as u64, images.len() as u64);
            let watch = &mut |_: &ddt::Progress<'_>| {
                on_news(News::Progress { work: "generating images in every way", done, total })
            };
            let noise = pipeline.noise(chunk, seed, rng)?;
            let measured = compare(&pipeline, chunk, &noise, &ways, watch, |_, _| Ok(()))?;
            all.iter_mut().zip(&measured).for_each(|(sum, it)| sum.add(it));
        }
        let mut text = "| fidelity | steps | sharing | error | faster |".to_owned();
        PREDICTED.iter().try_for_each(|it| write!(text, " {it} (predicted) |"))?;
        writeln!(text, "\n|---|---|---|---|---|{}", "---|".repeat(PREDICTED.len()))?;
        for (((choice, config), way), measured) in choices.iter().zip(&configs).zip(&ways).zip(&all) {
            let (steps, faster) = (way.grid.num_steps(), measured.faster_than(&all[0]));
            let name = format!("{choice:?}").to_lowercase();
            let (solver, sharing) = (config.solver.as_str(), &config.sharing);
            write!(text, "| {name} | {steps} {solver} | {sharing} | {} | {faster:.1}× |", measured.error())?;
            for network in PREDICTED {
                write!(text, " {:.1}× |", faster_than(&ways[0], way, &DdtConfig::preset(network)?)?)?;
            }
            writeln!(text)?;
        }
        Ok(text)
    }
}

/// Operations of `slow` over those of `fast`, for a network of these sizes on latents of 32 x 32.
fn faster_than(slow: &SampleOptions<'_>, fast: &SampleOptions<'_>, sizes: &DdtConfig) -> Result<f64> {
    let operations = sizes.operation_counts(32, 32);
    let guided = fast.guidance.guided_steps(&fast.grid);
    let shared = fast.plan.map_or(Ok(1.0), |plan| predicted_speedup_guided(plan, &operations, &guided))?;
    // Of each step without sharing, one batch or two.
    let batches = |way: &SampleOptions<'_>| {
        let guided = way.guidance.guided_steps(&way.grid);
        guided.iter().map(|it| if *it { 2.0 } else { 1.0 }).sum::<f64>()
    };
    Ok(shared * batches(slow) / batches(fast))
}
