//! The flags of a sampling program, to flatten into a `clap` command.
//!
//! ```
//! use clap::Parser;
//! use ddt::{args::SampleArgs, hub::{Hub, Release}};
//!
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     sample: SampleArgs,
//! }
//!
//! let args = Args::parse_from(["program", "--weights", "demo", "--class", "cat,ship", "--steps", "20"]);
//! let (opened, request) = args.sample.open(Release::DdtXl2R256, &Hub::from_env())?;
//! assert_eq!(request.classes, [3, 8]);
//! assert_eq!(opened.config().grid().num_steps(), 20);
//! # Ok::<(), ddt::Error>(())
//! ```

use std::{num::NonZeroUsize, path::PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use ddt_flow::{Guidance, NoiseSource, TimeGrid};
use ddt_hub::{Hub, Release};
use ddt_model::{Family, NetworkConfig};

use crate::{
    config::{
        Dtype, Fidelity, PipelineConfig, Place, Request, SolverName, Source, USUAL_LAST_STEP, USUAL_STEPS,
        usual_spacing,
    },
    error::{Context, Result, invalid},
    opened::Opened,
    share::Sharing,
};

/// ImageNet classes that are shown unless others are named: golden retriever, otter, red panda and geyser.
const SHOWN: [u32; 4] = [207, 360, 387, 974];

/// Which images, and how to make them.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct SampleArgs {
    /// Classes: label, range of labels, synset or name; repeat it or separate by commas
    /// [default: the first ten classes; 207,360,387,974 of ImageNet]
    #[arg(long = "class", value_name = "CLASS", allow_negative_numbers = true)]
    pub classes: Vec<String>,
    /// Images of each class [default: 8; 1 of ImageNet]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub images: Option<u32>,
    /// How to make them.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
}

/// How to make images.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct PipelineArgs {
    /// Weights of the network: auto, demo, hub, ddt-xl2-256 or another release, or a file (safetensors or PyTorch).
    /// hub is the published network of this size, from the hub's local cache; auto is that if it was fetched, else
    /// the demo
    #[arg(long, value_name = "auto|demo|hub|PATH", default_value = "auto")]
    pub weights: PathBuf,
    /// Sizes of the network, for a weights file that does not say its own, such as ddt-xl2-22en6de; the name of a
    /// release, such as ditdh-xl-256, chooses its published weights for auto and hub
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// The autoencoder: auto is the one the network was trained with; else sd-vae-ft-ema, rae-dinov2-b-256,
    /// rae-dinov2-b-512, or its file; the decoder of an RAE has the statistics of its latents, stat.pt, beside it
    #[arg(long, value_name = "auto|NAME|PATH", default_value = "auto", alias = "vae")]
    pub autoencoder: PathBuf,
    /// Solver, steps and sharing in one choice, instead of --solver, --steps, --last-step, --timeshift and --share
    #[arg(long, value_enum, value_name = "NAME",
          conflicts_with_all = ["solver", "steps", "last_step", "timeshift", "end", "share"])]
    pub fidelity: Option<Fidelity>,
    /// Solver steps from noise to image; the paper's tables have 250 [default: 50]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// How to take a step: euler (as in the paper's tables), heun, adams2, adams3, adams4, dpm2, euler-maruyama
    /// (stochastic, as DDT's code), euler-maruyama-repa (as REPA's), or dopri5, which divides each step until its
    /// error is below 1e-4, or another tolerance: dopri5:1e-6
    #[arg(long, value_name = "NAME", default_value = "euler")]
    pub solver: SolverName,
    /// Length of the last step, in flow time before shifting, above 0 and at most 1
    /// [default: 0.04; of DiT^DH that of all others]
    #[arg(long, value_name = "LENGTH", allow_negative_numbers = true)]
    pub last_step: Option<f64>,
    /// Respacing of the steps: above 1 more of them near noise, below 1 near the image (unitless)
    /// [default: 1; of DiT^DH the root of a latent's numbers over 4096, 6.93 at 256 px]
    #[arg(long, value_name = "SHIFT", allow_negative_numbers = true)]
    pub timeshift: Option<f64>,
    /// Flow time before shifting at which equal steps end, below 1: images keep a little noise
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, conflicts_with = "last_step")]
    pub end: Option<f64>,
    /// Strength of classifier-free guidance (unitless), 1 for none
    /// [default: 4; of ImageNet 2 at 256 px, 3 at 512 px]
    #[arg(long, value_name = "SCALE", allow_hyphen_values = true)]
    pub guidance: Option<f64>,
    /// Flow times between which guidance acts, both excluded; 0 is noise, 1 is the image
    /// [default: 0,1; 0.3,1 of ImageNet]
    #[arg(long, value_name = "LO,HI", value_parser = parse_interval, allow_hyphen_values = true)]
    pub interval: Option<(f64, f64)>,
    /// Channels of the latent that guidance acts on, the first ones, as DiT's code guides three of four
    /// [default: all]
    #[arg(long, value_name = "N")]
    pub guided_channels: Option<NonZeroUsize>,
    /// Weights of a network to guide away from instead of "no class" (autoguidance): usually a smaller or less
    /// trained one of the same latents and classes; a file or a published network such as ditdh-s-256
    #[arg(long, value_name = "PATH", alias = "weaker")]
    pub guiding_network: Option<PathBuf>,
    /// Steps that forecast the condition encoder's output from its last runs: none; uniform:R runs it at every R-th
    /// step; ratio:X skips a share X of the steps, evenly; or a plan file. With ",order:N" the forecast is a polynomial
    /// of order 0 (reuse, as in the paper), 1 or 2 (the default)
    #[arg(long, value_name = "none|uniform:R|ratio:X|PLAN.json", default_value = "none")]
    pub share: Sharing,
    /// Seed of all noise, which fixes the image of each class and column; with --rng torch neighbouring seeds share
    /// images
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Where noise comes from: a counter, or PyTorch's CPU generator seeded with SEED + 1000000 class + column, so
    /// that column 1 of seed 0 is column 0 of seed 1
    #[arg(long, default_value = "counter", value_parser = rng_parser())]
    pub rng: NoiseSource,
    /// Images made at once: memory and speed
    /// [default: 40; of ImageNet 4 at 256 px, 1 at 512 px, on a GPU 64 and 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: Option<u32>,
    /// Number type of the network; bf16 is that of Stable Diffusion's and an RAE's decoder too. 16 bits halve their
    /// memory
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Device: cpu; in a build with GPUs (docs/CUDA.md) cuda, or cuda:N, GPU N counted from 0
    #[arg(long, default_value = "cpu")]
    pub device: Place,
    /// Threads to compute with.
    #[command(flatten)]
    pub threads: Threads,
}

/// `--threads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::Args)]
pub struct Threads {
    /// Threads to compute with; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
}

impl Threads {
    /// [`ddt::start`](crate::start) with these threads.
    ///
    /// # Errors
    /// As [`ddt::start`](crate::start).
    pub fn start(self) -> Result<()> {
        crate::start(self.threads as usize).context("--threads")
    }
}

fn rng_parser() -> impl TypedValueParser<Value = NoiseSource> {
    let counter = PossibleValue::new("counter").help("Noise addressed by seed and image");
    let torch = PossibleValue::new("torch").help("The numbers of a PyTorch CPU generator");
    PossibleValuesParser::new([counter, torch]).map(|it| match it.as_str() {
        "torch" => NoiseSource::Torch,
        _ => NoiseSource::Counter,
    })
}

impl SampleArgs {
    /// Finds the weights and checks everything that can be wrong before they are read.
    ///
    /// # Errors
    /// As [`PipelineArgs::open`] and [`ClassTable::parse_list`](crate::ClassTable::parse_list).
    pub fn open(&self, release: Release, hub: &Hub) -> Result<(Opened, Request)> {
        let opened = self.pipeline.open(release, hub)?;
        let table = opened.classes();
        let imagenet = opened.is_imagenet();
        let mut classes = match self.classes.as_slice() {
            [] if imagenet => SHOWN.to_vec(),
            [] => (0..table.len().min(10) as u32).collect(),
            named => table.parse_list(named).context(if opened.is_demo() {
                "--class: the demo has few classes, --weights hub has all of ImageNet's"
            } else {
                "--class"
            })?,
        };
        let mut seen = std::collections::BTreeSet::new();
        classes.retain(|it| seen.insert(*it));
        let request = Request {
            classes,
            images_per_class: self.images.unwrap_or(if imagenet { 1 } else { 8 }),
            seed: self.pipeline.seed,
            rng: self.pipeline.rng,
            batch: self.pipeline.batch(&opened),
        };
        opened.check(&request)?;
        opened.check_page(&request)?;
        Ok((opened, request))
    }
}

impl PipelineArgs {
    /// Finds the weights, which `auto` and `hub` choose for this release, and checks all settings.
    ///
    /// # Errors
    /// As [`Opened::new`], with the flag to blame.
    pub fn open(&self, release: Release, hub: &Hub) -> Result<Opened> {
        Opened::new(&self.config(release, hub)?, hub)
    }

    /// The release that `--preset` names, else this one.
    #[must_use]
    pub fn release(&self, release: Release) -> Release {
        self.preset.as_deref().and_then(|it| it.parse().ok()).unwrap_or(release)
    }

    /// The description that the flags stand for.
    ///
    /// # Errors
    /// Numbers that make no grid or guidance; a preset that does not exist; published weights without their
    /// autoencoder.
    pub fn config(&self, release: Release, hub: &Hub) -> Result<PipelineConfig> {
        // Numbers that no weights make right.
        self.grid((Some(USUAL_LAST_STEP), 1.0))?;
        self.guidance_like(Guidance::none())?;
        let named = self.preset.as_deref().and_then(|it| it.parse::<Release>().ok());
        let sizes = named.map(Release::sizes).or(self.preset.as_deref());
        let network = sizes.map(NetworkConfig::preset).transpose().context("--preset")?;
        let release = named.unwrap_or(release);
        let weights = match self.weights.to_str() {
            Some("hub") => release.to_string().into(),
            // The demo does not stand in for a network that was asked for by name.
            Some("auto") if named.is_some() || hub.find(&release.network()).is_some() => {
                release.to_string().into()
            }
            Some("auto") => PathBuf::from("demo"),
            _ => self.weights.clone(),
        };
        let release = weights.to_str().and_then(|it| it.parse().ok()).unwrap_or(release);
        // What a file says of its latents is stronger.
        let own_size = weights.to_str() == Some("demo");
        let mut config = PipelineConfig {
            network,
            image_size: (!own_size).then_some((release.side(), release.side())),
            autoencoder: Source::new(&self.autoencoder),
            guiding_network: self.guiding_network.as_ref().map(Source::new),
            solver: self.solver.clone(),
            sharing: self.share.clone(),
            dtype: self.dtype,
            device: self.device,
            ..PipelineConfig::new(weights)
        };
        let spaced = self.steps.is_some()
            || self.last_step.is_some()
            || self.timeshift.is_some()
            || self.end.is_some();
        let guided = self.guidance.is_some() || self.interval.is_some() || self.guided_channels.is_some();
        if !spaced && !guided && self.fidelity.is_none() {
            return Ok(config);
        }
        // Settings that are left out are the usual ones of the weights. Sharing depends on what is not known yet.
        let plain = PipelineConfig { sharing: Sharing::None, ..config.clone() };
        let opened = Opened::new(&plain, hub)?;
        if let Some(fidelity) = self.fidelity {
            config.network = Some(opened.network.clone());
            config = config.with_fidelity(fidelity);
        } else if spaced {
            config.grid = Some(self.grid(usual_spacing(&opened.network))?);
        }
        if guided {
            let guidance = self.guidance_like(opened.config().guidance.unwrap_or(Guidance::none()))?;
            // As its published sampler has it.
            let closed = opened.network.family == Family::DitDh;
            config.guidance = Some(if closed { guidance.closed() } else { guidance });
        }
        Ok(config)
    }

    /// The grid of the flags, completed by a usual last step and timeshift.
    fn grid(&self, (last_step, timeshift): (Option<f64>, f64)) -> Result<TimeGrid> {
        let (steps, timeshift) = (self.steps.unwrap_or(USUAL_STEPS), self.timeshift.unwrap_or(timeshift));
        let grid = match self.end {
            Some(end) => TimeGrid::until(steps, end, timeshift),
            None => TimeGrid::new(steps, self.last_step.or(last_step), timeshift),
        };
        grid.context("--steps, --last-step, --timeshift, --end")
    }

    /// The guidance of the flags, completed by a usual one.
    fn guidance_like(&self, usual: Guidance) -> Result<Guidance> {
        let scale = self.guidance.unwrap_or(usual.scale());
        let guidance = Guidance::new(scale, self.interval.unwrap_or(usual.interval()));
        let guidance = guidance.context("--guidance, --interval")?;
        Ok(self.guided_channels.map_or(guidance, |it| guidance.with_channels(it)))
    }

    /// Images made at once.
    #[must_use]
    pub fn batch(&self, opened: &Opened) -> usize {
        self.batch.map_or(opened.usual_batch(), |it| it as usize)
    }

    /// A notice that the demo stands in for the published weights, and how to get these.
    #[must_use]
    pub fn notice(&self, opened: &Opened, release: Release, hub: &Hub) -> Option<String> {
        if self.weights.to_str() != Some("auto") || !opened.is_demo() {
            return None;
        }
        let release = self.release(release);
        let (height, width) = opened.image_size();
        let (side, classes, cache) = (release.side(), opened.classes().len(), hub.cache.display());
        let bytes: u64 = release.files().iter().filter_map(|it| it.about_bytes()).sum();
        Some(format!(
            "using the demo network: {width} x {height} pixels, {classes} classes\n\
             for {side} x {side} pixels and ImageNet's classes fetch {} ({:.1} GB) into {cache}:\n  \
             ddt fetch {release}",
            release.network().repository(),
            bytes as f64 / 1e9
        ))
    }

    /// Refuses flags that `what`, such as "plans are made", has no use for.
    ///
    /// # Errors
    /// `--guiding-network` or `--guided-channels`; `--share` or `--fidelity`.
    pub fn expect_unshared(&self, what: &str) -> Result<()> {
        if self.share != Sharing::None || self.fidelity.is_some() {
            return invalid(format!("--share, --fidelity: {what} from runs without sharing; leave both out"));
        }
        if self.guiding_network.is_some() || self.guided_channels.is_some() {
            return invalid(format!(
                "--guiding-network, --guided-channels: {what} for guidance away from \"no class\" in all channels; \
                 leave both out"
            ));
        }
        Ok(())
    }
}

fn parse_interval(text: &str) -> Result<(f64, f64), String> {
    let number = |part: &str| part.trim().parse::<f64>().ok();
    let bounds = text.split_once(',').and_then(|(low, high)| Some((number(low)?, number(high)?)));
    bounds.ok_or_else(|| "expected two numbers with a comma between, such as 0.3,1".to_owned())
}
