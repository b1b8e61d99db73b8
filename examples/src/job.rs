//! A command line that was found good: everything that can be wrong is found here, before any heavy work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use ddt_adapters::Decode;
use ddt_adapters::hub::HubOptions;
use ddt_flow::{FlowError, Guidance, NoiseSource, Solver, TimeGrid, solver_by_name};
use ddt_model::{DecoupledNetwork, VelocityNetwork};
use ddt_sharing::{MadeFor, SharingPlan};

use crate::atomic_file;
use crate::classes::ClassTable;
use crate::cli::{Args, Resolution};
use crate::decoder_file;
use crate::generate::Item;
use crate::gpu;
use crate::identity::Identity;
use crate::page;
use crate::progress::say;
use crate::sampler_args::{Dtype, LAST_STEP, SamplerArgs, WeightsChoice};
use crate::sharing_choice::SharingChoice;
use crate::weights::{Origin, Weights};

/// Where the paper guides its ImageNet networks. The demo, smaller and less sure, needs guidance from the start.
const PAPER_INTERVAL: (f64, f64) = (0.3, 1.0);

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
    /// Which steps skip the condition encoder.
    pub share: SharingChoice,
    /// Number type of the network, and on a GPU of the autoencoder.
    pub dtype: Dtype,
    /// What to compute on.
    pub device: String,
    /// The PNG file to write.
    pub out: PathBuf,
}

/// All that is read for a job.
pub struct Model {
    /// What the files are.
    pub identity: Identity,
    /// Where the condition encoder runs; `None` is at every step.
    pub plan: Option<SharingPlan>,
    /// Noise to latents.
    pub network: Box<dyn VelocityNetwork>,
    /// What guidance leads away from; `None` is "no class".
    pub weaker: Option<Box<dyn VelocityNetwork>>,
    /// Latents to pixels.
    pub decoder: Box<dyn Decode>,
}

impl Model {
    /// The network's two halves.
    ///
    /// # Errors
    ///
    /// A network without.
    pub fn halves(&self) -> Result<&dyn DecoupledNetwork> {
        self.network.decoupled().context("expected a network of a condition encoder and a velocity decoder")
    }
}

impl Job {
    /// Checks a command line and finds its weights; downloads them if `--weights hub` says so.
    ///
    /// # Errors
    ///
    /// Everything that can be known to be wrong before the weights are read.
    pub fn prepare(args: &Args, resolution: Resolution, hub: &HubOptions) -> Result<Self> {
        let sampler = &args.sampler;
        gpu::check(sampler)?;
        let grid = grid(sampler)?;
        let guidance = |scale: f64, interval| {
            let (scale, interval) = (sampler.guidance.unwrap_or(scale), sampler.interval.unwrap_or(interval));
            let guidance = Guidance::new(scale, interval).context("--guidance, --interval")?;
            Ok::<_, anyhow::Error>(match sampler.guided_channels {
                None => guidance,
                Some(channels) => guidance.with_channels(channels),
            })
        };
        guidance(1.0, PAPER_INTERVAL)?;
        let solver = solver_by_name(sampler.solver.as_str())?;
        if matches!(args.share, SharingChoice::File(_)) {
            sampler.check_plain_guidance("--share: plan files are made")?;
        }
        args.share.check()?;
        decoder_file::check(&sampler.vae)?;
        let out = output_path(args, resolution)?;
        if sampler.weights == WeightsChoice::Hub {
            // Known before a long download.
            ClassTable::imagenet()?.parse_list(&args.classes).context("--class")?;
        }

        let weights = Weights::find(sampler, resolution, hub)?;
        let imagenet = weights.is_imagenet();
        let guidance = if imagenet {
            guidance(resolution.guidance(), PAPER_INTERVAL)?
        } else {
            guidance(4.0, (0.0, 1.0))?
        };
        let at_once = if gpu::kind(&sampler.device).is_some() { (64, 32) } else { (4, 1) };
        let usual_batch = match resolution {
            _ if !imagenet => 40,
            Resolution::R256 => at_once.0,
            Resolution::R512 => at_once.1,
        };
        let job = Self {
            program: resolution.program(),
            classes: classes(args, &weights)?,
            columns: args.images.unwrap_or(if imagenet { 1 } else { 8 }),
            batch: args.batch.unwrap_or(usual_batch) as usize,
            seed: sampler.seed,
            rng: sampler.rng.into(),
            share: args.share.clone(),
            dtype: sampler.dtype,
            device: sampler.device.clone(),
            weights,
            grid,
            solver,
            guidance,
            out,
        };
        page::check_size(&job)?;
        job.share.check_settings(&job.settings()?)?;
        Ok(job)
    }

    /// Identifies the weights, makes the plan, and reads network and decoder.
    ///
    /// # Errors
    ///
    /// A plan that was made for another network; a file that is damaged, or holds another network; too little
    /// memory.
    pub fn load(&self) -> Result<Model> {
        let identity = self.weights.identify()?;
        let plan = self.share.plan(&self.made_for(&identity)?, self.grid.num_steps())?;
        self.read(identity, plan)
    }

    /// Reads network and decoder, which `identity` and `plan` belong to.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn read(&self, identity: Identity, plan: Option<SharingPlan>) -> Result<Model> {
        let (network, decoder) =
            self.weights.load(self.dtype.into(), gpu::place(&self.device, self.dtype)?)?;
        let weaker = self.weights.load_weaker(self.dtype.into())?;
        Ok(Model { identity, plan, network, weaker, decoder })
    }

    /// The images, row by row.
    #[must_use]
    pub fn items(&self) -> Vec<Item> {
        let row = |&label| (0..self.columns).map(move |column| Item { label, column });
        self.classes.iter().flat_map(row).collect()
    }

    /// The settings that a plan for this job must have been made for.
    ///
    /// # Errors
    ///
    /// None in practice: all settings have a JSON form.
    pub fn made_for(&self, identity: &Identity) -> Result<MadeFor> {
        Ok(self.settings()?.with_model(&identity.network))
    }

    fn settings(&self) -> Result<MadeFor> {
        let settings = MadeFor::new("").with("grid", &self.grid)?.with("guidance", &self.guidance)?;
        Ok(settings.with("solver", &self.solver.name())?)
    }
}

fn grid(sampler: &SamplerArgs) -> Result<TimeGrid> {
    let SamplerArgs { steps, last_step, timeshift, .. } = *sampler;
    TimeGrid::new(steps, Some(last_step), timeshift).map_err(|error| match error {
        // The library's way out, to leave it out, leads elsewhere here.
        FlowError::Invalid { what: "last step", got, .. } => anyhow!(
            "--last-step: expected a last step above 0 and at most 1, got {got}; leave it out for {LAST_STEP}"
        ),
        other => anyhow::Error::new(other).context("--steps, --last-step, --timeshift"),
    })
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
        Origin::Hub | Origin::File => anyhow::Error::new(error).context("--class"),
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
