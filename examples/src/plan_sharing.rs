//! The program `plan_sharing`: from weights to plans that `imagenet256 --share` takes.
//!
//! [`cli`] reads the command line, [`calibration`] measures how alike the self-conditions of the steps are,
//! [`plans`] makes plans of that, [`comparison`] draws with them, and [`report`] says what came of it.

pub mod calibration;
pub mod cli;
pub mod comparison;
pub mod plans;
pub mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use ddt_adapters::hub::HubOptions;
use ddt_sharing::{Planner, SimilarityAccumulator, SimilarityFile};

use crate::generate::Item;
use crate::job::{Job, Model};
use crate::page::SETTINGS_KEY;
use crate::picture::Picture;
use crate::progress::{Cancel, say};
use crate::weights::Origin;
use crate::{atomic_file, gpu, png_file, program};
use cli::Args;
use comparison::{Run, compare};
use plans::{Planned, Speed, Target, cost_plot};
use report::{Compared, Report, heat_map, image_page};

/// Runs the program; the status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    program::main(args.sampler.threads, |hub, cancel| run(&args, hub, cancel))
}

/// Measures, plans, compares, and writes each file when its contents are known; returns the table.
///
/// # Errors
///
/// Anything that can be known to be wrong before the weights are read, first of all a folder that cannot be
/// written; weights that cannot be read; [`Interrupted`](crate::generate::Interrupted); a full disk.
pub fn run(args: &Args, hub: &HubOptions, cancel: &Cancel) -> Result<String> {
    gpu::refuse(&args.sampler)?;
    SimilarityAccumulator::new(args.sampler.steps).context("--steps")?;
    args.sampler.check_plain_guidance("plans are made")?;
    let targets = args.targets();
    let folder = Folder::prepare(&args.out, &targets).context("--out")?;
    let job = Job::prepare(&args.imagenet(folder.file("images.png")), args.size, hub)?;
    let num_classes = job.weights.classes.len();
    let calibration = spread(args.images, num_classes, 0);
    let rounds = (args.images as usize).div_ceil(num_classes);
    let test = spread(args.num_test_images(), num_classes, rounds as u32);
    if !test.is_empty() {
        report::check_size(&job, &test, targets.len()).context("--test-images")?;
    }
    if job.weights.origin == Origin::Demo {
        say("planning for the demo network, which comes with the program; --weights hub plans for DDT-XL/2");
    }
    let model = job.load()?;

    say(&format!("measuring the similarity on {} images", calibration.len()));
    let statistic = calibration::measure(&job, model.halves()?, &calibration, cancel)?;
    let measured = SimilarityFile {
        made_for: job.made_for(&model.identity)?,
        seed: job.seed,
        images: calibration.len(),
        similarity: statistic.similarity()?,
        inner_products: Some(statistic.inner_products()?),
    };
    let planner = Planner::new(&measured.similarity, measured.similarity.num_steps())?;
    let planned: Vec<Planned> =
        targets.iter().map(|&it| Planned::new(it, &measured, &planner)).collect::<Result<_>>()?;
    let (height, width) = job.weights.latent_size;
    let speed = Speed {
        operations: job.weights.config.operation_counts(height, width),
        guided: job.guidance.guided_steps(&job.grid),
    };
    folder.write_plans(&measured, &planner, &planned, &speed)?;

    let compared = match test.as_slice() {
        [] => None,
        test => {
            let number = test.len();
            say(&format!(
                "drawing {number} other images without sharing and with {} plans",
                2 * planned.len()
            ));
            Some(compare_plans(&job, &model, test, &planned, cancel)?)
        }
    };
    let report =
        Report::new(&job, &measured.made_for, (&calibration, &test), speed, &planned, compared.as_ref())?;
    let json = report.to_json()?;
    if let Some(compared) = &compared {
        folder.write_picture(
            "images.png",
            &image_page(&job, &measured.made_for, &test, &planned, compared)?,
            &json,
        )?;
    }
    atomic_file::write(&folder.file("report.json"), json.as_bytes())?;
    Ok(format!("{}wrote plans, report and pictures to {}", report.table(), folder.path.display()))
}

/// `count` images of classes spread evenly over the table, the columns counted from `first_column`.
#[must_use]
pub fn spread(count: u32, num_classes: usize, first_column: u32) -> Vec<Item> {
    let (count, num_classes) = (u64::from(count), num_classes.max(1) as u64);
    let item = |index: u64| {
        // More images than classes take every class in turn.
        let label = if count < num_classes { index * num_classes / count } else { index % num_classes };
        Item { label: label as u32, column: first_column + (index / num_classes) as u32 }
    };
    (0..count).map(item).collect()
}

/// Draws the test images without sharing, and with both plans of each target.
fn compare_plans(
    job: &Job,
    model: &Model,
    items: &[Item],
    planned: &[Planned],
    cancel: &Cancel,
) -> Result<Compared> {
    let mut runs = vec![Run { plan: None, pictures: true }];
    for it in planned {
        runs.push(Run { plan: Some(&it.uniform.plan), pictures: false });
        runs.push(Run { plan: Some(&it.optimal.plan), pictures: true });
    }
    let mut outcomes = compare(job, model, items, &runs, cancel)?.into_iter();
    let unshared = outcomes.next().context("nothing was drawn")?;
    let shared = std::iter::from_fn(|| Some([outcomes.next()?, outcomes.next()?])).collect();
    Ok(Compared { unshared, shared })
}

/// The folder that everything is written into.
struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, and checks that each file can be written.
    fn prepare(path: &Path, targets: &[Target]) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| {
            format!("cannot make the folder {}; name another place with --out DIR", path.display())
        })?;
        let folder = Self { path: path.to_owned() };
        for name in ["similarity.json", "similarity.png", "cost.svg", "images.png", "report.json"] {
            atomic_file::check_writable(&folder.file(name))?;
        }
        for target in targets {
            atomic_file::check_writable(&folder.plan_file(*target))?;
        }
        Ok(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn plan_file(&self, target: Target) -> PathBuf {
        self.file(&format!("plan-{target}.json"))
    }

    /// Writes what is known before any plan is tried; hours of sampling may be in it.
    fn write_plans(
        &self,
        measured: &SimilarityFile,
        planner: &Planner,
        planned: &[Planned],
        speed: &Speed,
    ) -> Result<()> {
        atomic_file::write(&self.file("similarity.json"), measured.to_json()?.as_bytes())?;
        for it in planned {
            let json = it.file(measured, speed)?.to_json()?;
            atomic_file::write(&self.plan_file(it.target), json.as_bytes())?;
        }
        let settings = serde_json::json!({
            "program": "plan_sharing", "made_for": measured.made_for, "seed": measured.seed,
            "images": measured.images,
        });
        self.write_picture("similarity.png", &heat_map(measured)?, &settings.to_string())?;
        atomic_file::write(&self.file("cost.svg"), cost_plot(measured, planner)?.as_bytes())
    }

    fn write_picture(&self, name: &str, picture: &Picture, settings: &str) -> Result<()> {
        png_file::write(&self.file(name), picture, &[(SETTINGS_KEY, settings)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_spread_over_the_classes_and_never_the_same() {
        let labels = |count, num_classes| -> Vec<u32> {
            spread(count, num_classes, 0).iter().map(|item| item.label).collect()
        };
        assert_eq!(labels(4, 1000), [0, 250, 500, 750]);
        assert_eq!(labels(8, 10), [0, 1, 2, 3, 5, 6, 7, 8]);
        assert_eq!(labels(5, 3), [0, 1, 2, 0, 1]);
        for (count, num_classes) in [(1, 1), (4, 1000), (8, 10), (10, 10), (25, 10)] {
            let rounds = (count as usize).div_ceil(num_classes) as u32;
            let mut samples: Vec<u64> = spread(count, num_classes, 0).iter().map(|it| it.sample()).collect();
            samples.extend(spread(count, num_classes, rounds).iter().map(|it| it.sample()));
            samples.sort_unstable();
            samples.dedup();
            assert_eq!(samples.len(), 2 * count as usize);
        }
    }
}
