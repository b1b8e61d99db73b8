//! `ddt dataset`: many images in one archive, made by any number of processes, resumed by the same command.

mod png_folder;
mod rows;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::value_parser;
use ddt::{
    Image, Opened, OutputFile, Pipeline, PipelineConfig, Record, Request, Rounding,
    args::PipelineArgs,
    duration_in_words,
    files::npz::{ArchiveJob, ImageArchive, Next, Shard},
    flow::NoiseSource,
    hub::{Hub, Release},
};
use ddt_dist::Launch;
use serde::Serialize;

use self::png_folder::PngFolder;
pub(crate) use self::png_folder::beside;
use crate::{
    fetch,
    ranks::device_of,
    sample::parse_size,
    terminal::{Interrupted, Terminal},
};

const EXAMPLES: &str = "\
Examples:
  ddt dataset --count 1000                           a thousand images of the demo, in a minute or so
  ddt dataset --weights hub --steps 250              the 50,000 images of the paper's tables
  ddt dataset --weights ditdh-xl-256 --guiding-network ditdh-s-256 --fidelity exact --rounding down
                                                     those of DiT^DH's paper
  srun --ntasks 8 ddt dataset --weights hub          eight processes fill one archive (also torchrun, mpirun)
  ddt dataset --weights hub --device cuda:1 --dtype bf16 --rank 1 --world-size 8
                                                     one of eight, each on a GPU of its own
The same command resumes where it was stopped or killed, with any number of processes, and ends with the same bytes.";

/// Generates equally many images of each class into one npz file, which the usual evaluation scripts read.
///
/// The seed decides the order of rows. Finished batches are safe on the disk: until the archive is complete they are in
/// a folder beside it, whose name ends in .work. --batch is part of the job, for it may change a pixel by one grey
/// level.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Images to generate; papers compare 50,000
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    count: u32,
    /// Classes to generate: label, range of labels, synset or name; repeat it or separate by commas
    /// [default: all classes of the weights]
    #[arg(long = "class", value_name = "CLASS", allow_negative_numbers = true)]
    classes: Vec<String>,
    /// The npz file to write; its description goes beside it, with .json after the name
    /// [default: out/dataset.npz]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Folder to write the images to as PNG files too, named by row, when the archive is complete: a new or empty
    /// one; its description goes beside it, with .json after the name [default: none]
    #[arg(long, value_name = "DIR")]
    png_folder: Option<PathBuf>,
    /// Number of this process, from 0 [default: as torchrun, mpirun or SLURM say, else 0]
    #[arg(long, value_name = "RANK", requires = "world_size")]
    rank: Option<usize>,
    /// Number of processes that fill the archive [default: as torchrun, mpirun or SLURM say, else 1]
    #[arg(long, value_name = "N", requires = "rank")]
    world_size: Option<usize>,
    /// Side of the images in pixels, which chooses the published weights and guidance
    #[arg(long, value_name = "256|512", default_value = "256", value_parser = parse_size)]
    size: Release,
    /// Rounding of pixels to whole grey levels; the Fréchet distances of DiT^DH's paper are of images that are rounded
    /// down
    #[arg(long, value_enum, default_value_t = Rounding::Nearest)]
    rounding: Rounding,
    #[command(flatten)]
    pipeline: PipelineArgs,
}

/// Everything that the images depend on, as it is stored beside them: equal protocols, counts and batches are equal
/// images, on GPUs up to the order in which libraries sum.
#[derive(Debug, Serialize)]
struct Protocol {
    #[serde(flatten)]
    record: Record,
    order: &'static str,
    rounding: &'static str,
}

/// Time between two looks whether another process has finished its batch, or has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    let launch = Launch::from_env()?;
    let given = PipelineArgs { device: device_of(args.pipeline.device, &launch), ..args.pipeline.clone() };
    let given = &given;
    given.threads.start()?;
    let shard = rows::shard(args.rank, args.world_size, &launch)?;
    let out = match &args.out {
        Some(path) => OutputFile::new(path, &["npz"]),
        None => OutputFile::with_folder(Path::new("out/dataset.npz"), &["npz"]),
    };
    let out = out.context("--out")?;
    places(&out)?;
    let hub = Hub::from_env();
    fetch::weights(&hub, given, args.size, &args.classes, terminal)?;
    let config = PipelineConfig { rounding: args.rounding, ..given.config(args.size, &hub)? };
    let opened = Opened::new(&config, &hub)?;
    let batch = given.batch(&opened);
    let request = balanced(&opened, &args.classes, args.count, batch)?;
    let request = Request { seed: given.seed, rng: given.rng, ..request };
    if let Some(notice) = given.notice(&opened, args.size, &hub).filter(|_| shard.rank() == 0) {
        terminal.say(notice);
    }
    let png_folder = args.png_folder.as_deref();
    DataSet { opened, request, count: args.count, out, png_folder, shard }.generate(terminal)
}

/// A request for equally many images of each class, of all classes unless some are named, from seed 0.
pub(crate) fn balanced(opened: &Opened, named: &[String], count: u32, batch: usize) -> Result<Request> {
    let table = opened.classes();
    let mut classes = match named {
        [] => (0..table.len() as u32).collect(),
        named => table.parse_list(named).context("--class")?,
    };
    classes.sort_unstable();
    classes.dedup();
    ensure!(!classes.is_empty(), "--class: expected at least one class, got none");
    let images_per_class = count.div_ceil(classes.len() as u32);
    let request = Request { classes, images_per_class, seed: 0, rng: NoiseSource::Counter, batch };
    opened.check(&request).context("--count")?;
    Ok(request)
}

/// The archive and its description. Behind a link, both go beside the file that it leads to.
fn places(out: &OutputFile) -> Result<(&Path, OutputFile)> {
    let archive = if out.path().is_symlink() { out.target() } else { out.path() };
    Ok((archive, OutputFile::new(&beside(archive, ".json"), &[]).context("--out")?))
}

/// An archive to fill, and which part of it this process makes first.
pub(crate) struct DataSet<'a> {
    pub(crate) opened: Opened,
    /// `images_per_class` is the number of the first class, which has the most.
    pub(crate) request: Request,
    pub(crate) count: u32,
    pub(crate) out: OutputFile,
    pub(crate) png_folder: Option<&'a Path>,
    pub(crate) shard: Shard,
}

impl DataSet<'_> {
    /// Generates the missing images of the archive, finishes it, and writes PNG files if asked to; returns when all
    /// that is complete, also where other processes have completed it.
    pub(crate) fn generate(self, terminal: &Terminal) -> Result<String> {
        let Self { opened, request, count, out, png_folder, shard } = self;
        let (archive_path, description) = places(&out)?;
        let images = rows::images(&request.classes, count, request.seed);
        let ((height, width), classes) = (opened.image_size(), opened.classes().clone());
        let identified = opened.identify()?;
        let record = Record::new(identified.config(), &classes, request.clone());
        let rounding = record.pipeline.rounding.formula();
        let protocol = serde_json::to_value(Protocol { record, order: rows::ORDER, rounding })?;
        let job = ArchiveJob { count: images.len(), height, width, batch: request.batch, protocol };
        let png_folder = png_folder.map(|path| PngFolder::check(path, &job));
        let png_folder = png_folder.transpose().context("--png-folder")?;
        let archive = ImageArchive::open(archive_path, &job).context("--out")?;
        if let Some(folder) = &png_folder {
            folder.begin().context("--png-folder")?;
        }
        if let Some(archive) = archive {
            fill(&identified.load()?, &request, &images, archive, shard, terminal)?;
        }
        let mut summary = format!(
            "{} images of {width} x {height} pixels, {} classes\nwrote {} and {}",
            images.len(),
            request.classes.len(),
            out.path().display(),
            description.path().display()
        );
        if let Some(folder) = &png_folder {
            folder.write(archive_path, terminal).context("--png-folder")?;
            summary += &format!("\nwrote {} PNG files to {}", images.len(), folder.path().display());
        }
        Ok(summary)
    }
}

/// Makes batches until there are none left, here or elsewhere.
fn fill(
    pipeline: &Pipeline,
    request: &Request,
    images: &[Image],
    mut archive: ImageArchive,
    shard: Shard,
    terminal: &Terminal,
) -> Result<()> {
    let _stepping = terminal.cancel().stepping();
    let before = archive.finished_images();
    if before > 0 {
        terminal.say(format!("resuming after {before} of {} images", images.len()));
    }
    let pace = Pace { count: images.len(), before, shard };
    let (mut meter, started) = (terminal.meter(), Instant::now());
    let mut show = |finished: usize, doing: f64| {
        let share = (finished as f64 + doing) / images.len() as f64;
        meter.show(share, pace.line(finished, doing, started.elapsed()));
    };
    loop {
        match archive.next(shard)? {
            Next::Batch(claim) => {
                let finished = archive.finished_images();
                let batch = &images[claim.images()];
                let (made, _) = pipeline.images(batch, request.seed, request.rng, &mut |progress| {
                    show(finished, progress.images());
                    terminal.cancel().flow()
                })?;
                let pixels: Vec<&[u8]> = made.iter().map(|it| it.as_bytes()).collect();
                archive.write(claim, &pixels.concat())?;
                archive.refresh()?;
            }
            Next::Wait if terminal.cancel().is_requested() => return Err(Interrupted.into()),
            Next::Wait => std::thread::sleep(BETWEEN_LOOKS),
            Next::Filled => {
                let labels: Vec<i64> = images.iter().map(|it| it.label.into()).collect();
                return Ok(archive.finish(&labels)?);
            }
            Next::Complete => return Ok(()),
        }
        show(archive.finished_images(), 0.0);
    }
}

/// Speed of all processes of a job since this one began.
struct Pace {
    count: usize,
    /// Images that were finished when this process began.
    before: usize,
    shard: Shard,
}

impl Pace {
    /// The progress in words: `finished` images, and work on further ones, as a number of images.
    fn line(&self, finished: usize, doing: f64, elapsed: Duration) -> String {
        let done = finished.saturating_sub(self.before) as f64 + doing;
        let left = (self.count.saturating_sub(finished) as f64 - doing).max(0.0);
        let rate = done / elapsed.as_secs_f64().max(1e-9);
        let decimals = if rate >= 1.0 { 1 } else { 3 };
        let time = if done > 0.0 { duration_in_words(left / rate) } else { "unknown time".to_owned() };
        let who = match self.shard.world() {
            1 => String::new(),
            world => format!("process {} of {world}, all of them: ", self.shard.rank()),
        };
        format!("{who}{finished} of {} images, {rate:.decimals$} images/s, {time} left", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_images_rate_and_time_left() {
        let pace = Pace { count: 1000, before: 200, shard: Shard::ALONE };
        let after = |finished, doing, seconds| pace.line(finished, doing, Duration::from_secs(seconds));
        assert_eq!(after(200, 0.0, 5), "200 of 1000 images, 0.000 images/s, unknown time left");
        assert_eq!(after(200, 20.0, 10), "200 of 1000 images, 2.0 images/s, 6 min 30 s left");
        assert_eq!(after(240, 0.0, 80), "240 of 1000 images, 0.500 images/s, 25 min 20 s left");
        assert!(after(1000, 0.0, 100).ends_with("8.0 images/s, 0 s left"));
        let other = Pace { count: 4, before: 0, shard: Shard::new(1, 3).unwrap() };
        let line = other.line(0, 0.0, Duration::from_secs(1));
        assert!(line.starts_with("process 1 of 3, all of them: 0 of 4 images"), "{line}");
    }
}
