//! `ddt sample`: images of chosen classes as a labelled grid.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ddt::{
    Generated, Opened, OutputFile, PipelineConfig, Record, Request, Source, VERSION,
    args::SampleArgs,
    hub::{Hub, Release},
};

use crate::{fetch, terminal::Terminal};

const EXAMPLES: &str = "\
Examples:
  ddt sample                       published weights if they were fetched, else the demo
  ddt sample --weights hub         DDT-XL/2 and its autoencoder, fetched if need be
  ddt sample --class 'golden retriever,387' --images 4 --seed 7
  ddt sample --share ratio:0.8 --solver adams2 --steps 30
  ddt sample --redo out/sample.png";

/// Generates images of chosen classes and writes them as a labelled grid: a row for each class, a column for each
/// image.
///
/// Without published weights it generates with the small demo network that comes with the program. The PNG file
/// carries everything that its images depend on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Side of the images in pixels, which chooses the published weights and some defaults
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    size: Release,
    /// The PNG file to write [default: out/sample.png; with --redo out/redo.png]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Make an image again from the record in its file, and compare the bytes; weights that are files are named again
    /// with --weights, --autoencoder, --guiding-network
    #[arg(long, value_name = "IMAGE.png", conflicts_with_all = [
        "classes", "images", "size", "preset", "steps", "solver", "last_step", "timeshift", "end", "guidance", "interval",
        "guided_channels", "share", "seed", "rng", "batch", "dtype", "device",
    ])]
    redo: Option<PathBuf>,
    #[command(flatten)]
    sample: SampleArgs,
}

/// Reads `256` or `512`.
pub(crate) fn parse_size(text: &str) -> Result<Release, String> {
    let found = Release::ALL.into_iter().find(|it| it.side().to_string() == text);
    found.ok_or_else(|| "expected 256 or 512".to_owned())
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    args.sample.pipeline.threads.start()?;
    make(args, terminal)
}

/// [`run`], with the threads that there are.
pub(crate) fn make(args: &Args, terminal: &Terminal) -> Result<String> {
    let hub = Hub::from_env();
    let default = if args.redo.is_some() { "out/redo.png" } else { "out/sample.png" };
    let out = match &args.out {
        Some(path) => OutputFile::new(path, &["png"]),
        None => OutputFile::with_folder(Path::new(default), &["png"]),
    };
    let out = out.context("--out")?;
    match &args.redo {
        Some(image) => redo(args, image, &out, &hub, terminal),
        None => {
            fetch::weights(&hub, &args.sample.pipeline, args.size, &args.sample.classes, terminal)?;
            let (opened, request) = args.sample.open(args.size, &hub)?;
            if let Some(notice) = args.sample.pipeline.notice(&opened, args.size, &hub) {
                terminal.say(notice);
            }
            let generated = generate(opened, &request, terminal)?;
            out.write(&generated.png()?)?;
            Ok(format!("{}\nwrote {}", generated.summary(), out.path().display()))
        }
    }
}

fn generate(opened: Opened, request: &Request, terminal: &Terminal) -> Result<Generated> {
    let pipeline = opened.load()?;
    let _stepping = terminal.cancel().stepping();
    let mut meter = terminal.meter();
    Ok(pipeline.generate(request, &mut |progress| meter.images(progress))?)
}

/// Makes an image again.
fn redo(args: &Args, image: &Path, out: &OutputFile, hub: &Hub, terminal: &Terminal) -> Result<String> {
    let Record { version, pipeline, request, .. } = Record::read(image).context("--redo")?;
    ensure!(
        version == VERSION,
        "--redo: {} was made by version {version}, expected this program's version {VERSION}",
        image.display()
    );
    let given = &args.sample.pipeline;
    let named = |source: Source, path: Option<&PathBuf>| match path {
        Some(path) => Source { from: path.clone(), ..source },
        None => source,
    };
    let config = PipelineConfig {
        weights: named(pipeline.weights.clone(), Some(&given.weights).filter(|it| !is_auto(it))),
        autoencoder: named(pipeline.autoencoder.clone(), Some(&given.autoencoder).filter(|it| !is_auto(it))),
        guiding_network: pipeline.guiding_network.clone().map(|it| named(it, given.guiding_network.as_ref())),
        ..pipeline.clone()
    };
    let opened = Opened::new(&config, hub).context("--redo")?;
    opened.check(&request).context("--redo")?;
    let mut generated = generate(opened, &request, terminal)?;
    // Their hashes are the same, so a file may be called otherwise by now.
    let record = &mut generated.record.pipeline;
    record.weights = pipeline.weights;
    record.autoencoder = pipeline.autoencoder;
    record.guiding_network = pipeline.guiding_network;
    let (bytes, summary) = (generated.png()?, generated.summary());
    out.write(&bytes)?;
    let (shown, original) = (out.path().display(), image.display());
    if bytes != std::fs::read(image).with_context(|| original.to_string())? {
        bail!(
            "wrote {shown}, which differs from {original}: sums of another processor's instructions or number of \
             threads may differ in their last bit"
        );
    }
    Ok(format!("{summary}\nwrote {shown}, the same bytes as {original}"))
}

fn is_auto(path: &Path) -> bool {
    path == Path::new("auto")
}
