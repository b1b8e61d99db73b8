//! The program `generate_dataset`: a balanced data set of generated images in one archive, from any number of
//! processes, resumed by the same command.
//!
//! [`cli`] reads the command line, [`launcher`] finds out which process this is, [`order`] says which image
//! stands where, [`protocol`] writes down how images are made, [`painter`] makes them, [`meter`] shows how far
//! the work is, and [`png_files`] takes an archive apart.

pub mod cli;
pub mod launcher;
pub mod meter;
pub mod order;
pub mod painter;
pub mod png_files;
pub mod protocol;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ddt_adapters::hub::HubOptions;
use ddt_files::npz::{ArchiveJob, ImageArchive, Next, Shard};

use crate::classes::ClassTable;
use crate::generate::{Interrupted, Item};
use crate::gpu::Gpu;
use crate::job::{Job, Model};
use crate::program;
use crate::progress::{Cancel, say};
use crate::sampler_args::WeightsChoice;
use crate::weights::Origin;
use cli::Args;
use meter::Meter;
use protocol::Protocol;

/// Time between two looks whether another process has finished its batch, or has ended.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.sampler.threads, |hub, cancel| {
        let share = launcher::share(args.rank, args.world_size, |name| std::env::var(name).ok())?;
        run(&args, share, hub, cancel)
    })
}

/// Draws what is still missing of the archive, finishes it, writes PNG files if asked to, and sums up.
///
/// Returns when the archive is complete, also where other processes have completed it.
///
/// # Errors
///
/// Anything that can be known to be wrong before the weights are read; an archive or a work folder of another
/// job at `--out`; weights that cannot be read; [`Interrupted`]; a full disk. Finished batches are kept.
pub fn run(args: &Args, share: Shard, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    if args.sampler.weights == WeightsChoice::Hub {
        // Known before a long download.
        ClassTable::imagenet()?.parse_list(&args.classes).context("--class")?;
    }
    let out = output_path(args)?;
    if let Some(folder) = &args.png_folder {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--png-folder: cannot make the folder {}", folder.display()))?;
    }
    let job = Job::prepare(&args.imagenet(out), args.size, hub)?;
    let classes = classes(args, &job)?;
    let items = order::items(&classes, args.count, job.seed).context("--count")?;
    if job.weights.origin == Origin::Demo && share.rank() == 0 {
        say("drawing with the demo network, which comes with the program; --weights hub draws with DDT-XL/2");
    }

    let identity = job.weights.identify()?;
    let plan = job.share.plan(&job.made_for(&identity)?, job.grid.num_steps())?;
    let protocol = Protocol::new(&job, &identity, plan.as_ref(), &classes);
    let (height, width) = job.weights.image_size();
    let archive_job = ArchiveJob {
        count: items.len(),
        height,
        width,
        batch: job.batch,
        protocol: serde_json::to_value(&protocol)?,
    };
    if let Some(archive) = ImageArchive::open(&job.out, &archive_job).context("--out")? {
        let model = job.read(identity, plan)?;
        fill(&job, &model, &items, archive, share, cancel)?;
    }
    let mut summary = format!(
        "{} images of {width} x {height} pixels, {} classes\nwrote {} and {}.json",
        items.len(),
        classes.len(),
        job.out.display(),
        job.out.display()
    );
    if let Some(folder) = &args.png_folder {
        png_files::write(&job.out, folder, cancel).context("--png-folder")?;
        summary += &format!("\nwrote {} PNG files to {}", items.len(), folder.display());
    }
    Ok(summary)
}

/// Draws batches until there are none left, here or elsewhere.
fn fill(
    job: &Job,
    model: &Model,
    items: &[Item],
    mut archive: ImageArchive,
    share: Shard,
    cancel: &Cancel,
) -> Result<()> {
    let mut gpu = Gpu::open(job, model)?;
    let _stepping = cancel.stepping();
    let before = archive.finished_images();
    if before > 0 {
        say(&format!("going on after {before} of {} images", items.len()));
    }
    let mut meter = Meter::start(items.len(), before, share);
    loop {
        match archive.next(share)? {
            Next::Batch(claim) => {
                let batch = &items[claim.images()];
                let pixels = painter::paint(job, model, batch, gpu.as_mut(), cancel, &mut |done| {
                    meter.painting(done);
                })?;
                archive.write(claim, &pixels)?;
                archive.refresh()?;
                meter.finished(archive.finished_images());
            }
            Next::Wait => {
                if cancel.is_requested() {
                    return Err(Interrupted.into());
                }
                std::thread::sleep(BETWEEN_LOOKS);
                meter.finished(archive.finished_images());
            }
            Next::Filled => {
                let labels: Vec<i64> = items.iter().map(|item| item.label.into()).collect();
                return Ok(archive.finish(&labels)?);
            }
            Next::Complete => return Ok(()),
        }
    }
}

/// Labels in ascending order, each once.
fn classes(args: &Args, job: &Job) -> Result<Vec<u32>> {
    let table = &job.weights.classes;
    let mut classes = match args.classes.as_slice() {
        [] => (0..table.len() as u32).collect(),
        named => table.parse_list(named).context("--class")?,
    };
    classes.sort_unstable();
    classes.dedup();
    ensure!(!classes.is_empty(), "--class: expected at least one class, got none");
    Ok(classes)
}

/// The archive to write; only the folder of the default path is made if it is missing.
fn output_path(args: &Args) -> Result<PathBuf> {
    if let Some(path) = &args.out {
        return Ok(path.clone());
    }
    std::fs::create_dir_all("out")
        .context("cannot make the folder out here; name another place with --out PATH")?;
    Ok(PathBuf::from("out/dataset.npz"))
}
