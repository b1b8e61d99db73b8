//! `ddt study`: the paper's analyses and comparisons.

use anyhow::{Result, ensure};
use ddt::{
    Place,
    args::{PipelineArgs, Threads},
    hub::{Hub, Release},
};
use ddt_study::{
    Analyses, ClassifierTraining, Comparison, DemoStudy, FidelityStudy, News, SharingStudy, Subject, Table,
};

use crate::{fetch, sample::parse_size, terminal::Terminal, train::TrainingReport};

/// Latents that are generated at once unless `--batch` says otherwise.
const BATCH: u32 = 20;

/// Measures the paper's claims: spectra, solvers, the split, decoder blocks, sharing and guidance.
///
/// Every study writes its results, tables and plots into a folder, and the same command resumes what was stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    study: Study,
}

#[derive(Debug, clap::Subcommand)]
enum Study {
    /// Spectra of noisy latents, and errors of solvers, of one network
    #[command(allow_negative_numbers = true)]
    Analyses(Box<OfNetwork<Analyses>>),
    /// Error and time of reuse and forecasts of the self-condition, of one network
    #[command(allow_negative_numbers = true)]
    Sharing(Box<OfNetwork<SharingStudy>>),
    /// Error and time of --fidelity high and fast, against the published sampler
    #[command(allow_negative_numbers = true)]
    Fidelity(Box<OfNetwork<FidelityStudy>>),
    /// The decoder alone against encoder and decoder of 2:6, 4:4, 6:2 and 7:1 blocks (Tab. 2, Figs. 7 and 8)
    Split(WithThreads<Comparison>),
    /// Decoder blocks of attention, 3 x 3 convolution and MLP, encoder to decoder 6:2 (Tab. 5)
    Decoder(WithThreads<Comparison>),
    /// Guidance, sharing, solvers and steps, measured on the demo (Tab. 4, Figs. 4 and 9)
    Demo(WithThreads<DemoStudy>),
    /// Train the classifier that the studies measure with
    Classifier(WithThreads<ClassifierTraining>),
}

#[derive(Debug, clap::Args)]
struct OfNetwork<T: clap::Args> {
    #[command(flatten)]
    study: T,
    /// Side of the images in pixels, which chooses the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    size: Release,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

#[derive(Debug, clap::Args)]
struct WithThreads<T: clap::Args> {
    #[command(flatten)]
    study: T,
    #[command(flatten)]
    threads: Threads,
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let threads = match &args.study {
        Study::Analyses(it) => it.pipeline.threads,
        Study::Sharing(it) => it.pipeline.threads,
        Study::Fidelity(it) => it.pipeline.threads,
        Study::Split(it) | Study::Decoder(it) => it.threads,
        Study::Demo(it) => it.threads,
        Study::Classifier(it) => it.threads,
    };
    threads.start()?;
    let (mut training, mut counting) = (TrainingReport::new(terminal), None);
    let mut on_news = |news: News<'_>| {
        if !matches!(news, News::Progress { .. }) {
            counting = None;
        }
        match news {
            News::Message(line) => terminal.say(line),
            News::Progress { work, done, total } => {
                terminal.count(&mut counting, work, done, total);
            }
            News::Training(settings, event) => training.show(settings, event),
            _ => {}
        }
        terminal.cancel().flow()
    };
    let _stepping = terminal.cancel().stepping();
    match &args.study {
        Study::Analyses(args) => args.study.run(args.subject("analyses are made", terminal)?, &mut on_news),
        Study::Sharing(args) => args.study.run(args.subject("sharing is measured", terminal)?, &mut on_news),
        Study::Fidelity(args) => {
            args.study.run(args.subject("fidelity is measured", terminal)?, &mut on_news)
        }
        Study::Split(it) => it.study.run(Table::Split, &mut on_news),
        Study::Decoder(it) => it.study.run(Table::Decoder, &mut on_news),
        Study::Demo(it) => it.study.run(&mut on_news),
        Study::Classifier(it) => it.study.run(&mut on_news),
    }
}

impl<T: clap::Args> OfNetwork<T> {
    /// The network, on the CPU and without sharing; `work` says what is done with it.
    fn subject(&self, work: &str, terminal: &Terminal) -> Result<Subject> {
        let Self { size, pipeline, .. } = self;
        pipeline.expect_unshared(work)?;
        ensure!(pipeline.device == Place::Cpu, "--device: {work} on the CPU; leave it out");
        let hub = Hub::from_env();
        fetch::weights(&hub, pipeline, *size, &[], terminal)?;
        let opened = pipeline.open(*size, &hub)?;
        if let Some(notice) = pipeline.notice(&opened, *size, &hub) {
            terminal.say(notice);
        }
        let batch = pipeline.batch.unwrap_or(BATCH) as usize;
        Ok(Subject { opened, seed: pipeline.seed, rng: pipeline.rng, batch })
    }
}
