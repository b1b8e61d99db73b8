//! A command line that was found good: everything that can be wrong is found here, before any heavy work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use ddt_adapters::hub::HubOptions;
use ddt_flow::{Guidance, NoiseSource, Solver, TimeGrid, solver_by_name};
use ddt_sharing::{PlanFor, PlanGuidance, SharingPlan, StepGrid};

use crate::atomic_file;
use crate::classes::ClassTable;
use crate::cli::{Args, Dtype, Resolution, WeightsChoice};
use crate::generate::Item;
use crate::page;
use crate::progress::say;
use crate::sharing_choice::SharingChoice;
use crate::weights::{self, Origin, Weights};

/// ImageNet classes that are drawn unless others are named: golden retriever, otter, red panda and geyser.
const SHOWN: [u32; 4] = [207, 360, 387, 974];

/// What to draw, with what, and where to put it.
#[derive(Debug)]
pub struct Job {
    /// Name of the program.
    pub program: &'static str,
    /// The network.
    pub weights: Weights,
    /// Labels, one row each.
    pub classes: Vec<u32>,
    /// Images of each class, one column each.
    pub columns: u32,
    /// Images drawn at once.
    pub batch: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Where noise comes from.
    pub rng: NoiseSource,
    /// The steps.
    pub grid: TimeGrid,
    /// How to take one.
    pub solver: Box<dyn Solver>,
    /// How strongly to follow the class, and when.
    pub guidance: Guidance,
    /// What was asked about sharing, and the plan it led to.
    pub sharing: (SharingChoice, Option<SharingPlan>),
    /// Number type of the network.
    pub dtype: Dtype,
    /// The PNG file to write.
    pub out: PathBuf,
}

impl Job {
    /// Checks a command line and finds its weights; downloads them if `--weights hub` says so.
    ///
    /// # Errors
    ///
    /// Everything that can be known to be wrong before the weights are read.
    pub fn prepare(args: &Args, resolution: Resolution, hub: &HubOptions) -> Result<Self> {
        let grid = TimeGrid::new(args.steps, Some(args.last_step), args.timeshift)
            .context("--steps, --last-step, --timeshift")?;
        let guidance = |scale| Guidance::new(scale, args.interval).context("--guidance, --interval");
        guidance(args.guidance.unwrap_or(1.0))?;
        let solver = solver_by_name(args.solver.as_str())?;
        args.share.check()?;
        weights::check_autoencoder(&args.vae)?;
        let out = output_path(args, resolution)?;
        if args.weights == WeightsChoice::Hub {
            // Known before a long download.
            ClassTable::imagenet()?.parse_list(&args.classes).context("--class")?;
        }

        let weights = Weights::find(args, resolution, hub)?;
        let imagenet = weights.is_imagenet();
        let guidance = guidance(args.guidance.unwrap_or(if imagenet { resolution.guidance() } else { 3.0 }))?;
        let usual_batch = match resolution {
            _ if !imagenet => 40,
            Resolution::R256 => 4,
            Resolution::R512 => 1,
        };
        let job = Self {
            program: resolution.program(),
            classes: classes(args, &weights)?,
            columns: args.images.unwrap_or(if imagenet { 1 } else { 8 }),
            batch: args.batch.unwrap_or(usual_batch) as usize,
            seed: args.seed,
            rng: args.rng.into(),
            sharing: (args.share.clone(), args.share.plan(&plan_for(&weights, &grid, &guidance, &*solver))?),
            dtype: args.dtype,
            weights,
            grid,
            solver,
            guidance,
            out,
        };
        page::check_size(&job)?;
        Ok(job)
    }

    /// The images, row by row.
    #[must_use]
    pub fn items(&self) -> Vec<Item> {
        let row = |&label| (0..self.columns).map(move |column| Item { label, column });
        self.classes.iter().flat_map(row).collect()
    }

    /// The settings that a plan for this job must have been made for.
    #[must_use]
    pub fn plan_for(&self) -> PlanFor {
        plan_for(&self.weights, &self.grid, &self.guidance, &*self.solver)
    }
}

fn plan_for(weights: &Weights, grid: &TimeGrid, guidance: &Guidance, solver: &dyn Solver) -> PlanFor {
    PlanFor {
        model: weights.identity.clone(),
        grid: StepGrid {
            num_steps: grid.num_steps(),
            last_step: grid.last_step(),
            timeshift: grid.timeshift(),
        },
        guidance: PlanGuidance { scale: guidance.scale(), interval: guidance.interval() },
        solver: Some(solver.name().to_owned()),
    }
}

/// Labels in the order given, each once.
fn classes(args: &Args, weights: &Weights) -> Result<Vec<u32>> {
    let table = &weights.classes;
    if args.classes.is_empty() {
        let all = 0..table.len().min(10) as u32;
        return Ok(if weights.is_imagenet() { SHOWN.to_vec() } else { all.collect() });
    }
    let named = table.parse_list(&args.classes).map_err(|error| match weights.origin {
        Origin::Demo => {
            anyhow!("--class: {error}; the demo has few classes, --weights hub draws all of ImageNet's")
        }
        Origin::Hub | Origin::File => error.context("--class"),
    })?;
    let mut classes = Vec::new();
    for label in named {
        if classes.contains(&label) {
            say(&format!("class {label} is named twice; it gets one row"));
        } else {
            classes.push(label);
        }
    }
    ensure!(!classes.is_empty(), "--class: expected at least one class, got none");
    Ok(classes)
}

/// The file to write; only the folder of the default path is made if it is missing.
fn output_path(args: &Args, resolution: Resolution) -> Result<PathBuf> {
    let path = match &args.out {
        Some(path) => path.clone(),
        None => {
            let folder = Path::new("out");
            std::fs::create_dir_all(folder)
                .context("cannot make the folder out here; name another place with --out PATH")?;
            folder.join(resolution.program()).with_extension("png")
        }
    };
    atomic_file::check_writable(&path).context("--out")?;
    Ok(path)
}
