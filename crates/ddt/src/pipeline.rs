//! Weights to images.

use std::{fmt, ops::ControlFlow, path::Path, sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use ddt_flow::{FlowError, Guidance, NoiseSource, Solver};
use ddt_hub::{Hub, Release};
use ddt_model::{ModelError, NetworkCalls, SampleOptions, Sampled, VelocityNetwork};
use ddt_picture::Rgb8;
use ddt_sharing::{MadeFor, SharingPlan};

use crate::{
    classes::ClassTable,
    config::{Image, PipelineConfig, Request, Source},
    decoding::{Decoder, Scale, decode},
    engine::Engine,
    error::{Context, Error, Result, invalid},
    generated::{Generated, Record, Report},
    opened::{Opened, made_for},
    progress::{Preview, Progress},
    share::Sharing,
};

/// Network, autoencoder, classes and sampler, ready to make images.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// let pipeline = ddt::Pipeline::from_hub(ddt::hub::Release::DdtXl2R256)?;
/// let golden_retriever = pipeline.classes().parse("golden retriever")?;
/// let request = ddt::Request::new([golden_retriever], 4);
/// let generated = pipeline.generate(&request, &mut |progress| {
///     eprintln!("{progress}");
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(generated.images.len(), 4);
/// # Ok::<(), ddt::Error>(())
/// ```
pub struct Pipeline {
    /// Complete, with hashes and without paths.
    config: PipelineConfig,
    solver: Box<dyn Solver>,
    plan: Option<SharingPlan>,
    made_for: MadeFor,
    loaded: Arc<Loaded>,
}

/// Weights in memory, which several pipelines share.
struct Loaded {
    opened: Opened,
    engine: Engine,
    decoder: Decoder,
    scale: Option<Scale>,
}

/// Callback of [`Pipeline::generate`] after every step; it may stop the run.
pub type Watch<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;

impl Pipeline {
    /// The demo that comes with the library: CIFAR-10's ten classes, 32 x 32 pixels.
    ///
    /// # Errors
    /// A build without the feature `demo`.
    pub fn demo() -> Result<Self> {
        Self::new(&PipelineConfig::new("demo"))
    }

    /// A published network from the hub's local cache.
    ///
    /// # Errors
    /// [`Error::NotFetched`], which names the command that fetches it.
    pub fn from_hub(release: Release) -> Result<Self> {
        Self::new(&PipelineConfig::new(release.to_string()))
    }

    /// A network and its autoencoder from two files.
    ///
    /// # Errors
    /// Files that cannot be read, hold something else, or do not fit each other.
    pub fn from_files(network: &Path, autoencoder: &Path) -> Result<Self> {
        Self::new(&PipelineConfig { autoencoder: Source::new(autoencoder), ..PipelineConfig::new(network) })
    }

    /// Whatever a description says; published files come from the local cache that the environment names.
    ///
    /// # Errors
    /// As [`Opened::new`] and [`Opened::load`].
    pub fn new(config: &PipelineConfig) -> Result<Self> {
        Opened::new(config, &Hub::from_env())?.load()
    }

    /// A pipeline of the same weights, in the same memory, with the solver, grid, guidance and sharing of `config`;
    /// an omitted grid or guidance is this pipeline's.
    ///
    /// # Errors
    /// Other weights, number type or device than this pipeline's; guidance, a solver or a plan that does not fit.
    pub fn with_sampler(&self, config: &PipelineConfig) -> Result<Self> {
        let PipelineConfig { solver, grid, guidance, sharing, .. } = config.clone();
        if *config != (PipelineConfig { solver, grid, guidance, sharing, ..self.config.clone() }) {
            return invalid("expected settings that differ in solver, grid, guidance and sharing only");
        }
        let config = PipelineConfig {
            grid: config.grid.clone().or_else(|| self.config.grid.clone()),
            guidance: config.guidance.or(self.config.guidance),
            ..config.clone()
        };
        self.loaded.opened.check_sampler(&config)?;
        let (config, plan, made_for) = self.loaded.opened.planned(config)?;
        Ok(Self { solver: config.solver.solver()?, config, plan, made_for, loaded: self.loaded.clone() })
    }

    /// The settings: complete, with the hashes of all files, and without their folders.
    #[must_use]
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// The classes, in the order of labels.
    #[must_use]
    pub fn classes(&self) -> &ClassTable {
        self.loaded.opened.classes()
    }

    /// Height and width of an image, in pixels.
    #[must_use]
    pub fn image_size(&self) -> (usize, usize) {
        self.loaded.opened.image_size()
    }

    /// Channels, height and width of a latent.
    #[must_use]
    pub fn latent_shape(&self) -> (usize, usize, usize) {
        let opened = &self.loaded.opened;
        let (height, width) = opened.latent_size;
        (opened.network.sizes.in_channels, height, width)
    }

    /// The network, where it runs on the CPU.
    #[must_use]
    pub fn network(&self) -> Option<&dyn VelocityNetwork> {
        self.loaded.engine.network()
    }

    /// Steps at which the condition encoder runs; `None` is all of them.
    #[must_use]
    pub fn plan(&self) -> Option<&SharingPlan> {
        self.plan.as_ref()
    }

    /// The settings that a plan for this pipeline must have been made for.
    #[must_use]
    pub fn made_for(&self) -> &MadeFor {
        &self.made_for
    }

    /// The pipeline's sampler with another plan, or with none.
    #[must_use]
    pub fn sample_options<'a>(&'a self, plan: Option<&'a SharingPlan>) -> SampleOptions<'a> {
        let guidance = self.config.guidance.unwrap_or(Guidance::none());
        SampleOptions { grid: self.config.grid().clone(), solver: &*self.solver, guidance, plan }
    }

    /// Checks that a request fits the weights.
    ///
    /// # Errors
    /// As [`Opened::check`].
    pub fn check(&self, request: &Request) -> Result<()> {
        self.loaded.opened.check(request)
    }

    /// Makes images, a batch at a time, calling `watch` after every step.
    ///
    /// Labels and noise of an image depend on itself and the seed alone; so do its pixels, but for the last bit of
    /// sums that a batch of another size takes in another order.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`Error::Cancelled`] when `watch` breaks; a network or decoder that produced NaN or
    /// infinity.
    pub fn generate(&self, request: &Request, watch: &mut Watch<'_>) -> Result<Generated> {
        self.check(request)?;
        let wanted = request.images();
        let started = Instant::now();
        let mut report = Report { images: wanted.len(), ..Report::default() };
        let (mut images, mut latents) = (Vec::with_capacity(wanted.len()), Vec::new());
        for batch in wanted.chunks(request.batch) {
            let finished = images.len();
            let mut watch = |progress: &Progress<'_>| {
                let elapsed = started.elapsed();
                watch(&Progress { finished, total: wanted.len(), elapsed, ..*progress })
            };
            let noise = self.noise(batch, request.seed, request.rng)?;
            let sampled = self.sample(batch, &noise, self.plan(), &mut watch)?;
            images.extend(self.decode(&sampled.latents)?);
            latents.push(sampled.latents);
            report.calls = sampled.calls;
        }
        report.elapsed = started.elapsed();
        let latents = Tensor::cat(&latents, 0)?;
        let record = Record::new(&self.config, self.classes(), request.clone());
        Ok(Generated { images, latents, record, report })
    }

    /// Makes the images of one batch, in their order; also says how often each half of the network ran.
    ///
    /// # Errors
    /// As [`sample`](Self::sample) and [`decode`](Self::decode).
    pub fn images(
        &self,
        images: &[Image],
        seed: u64,
        rng: NoiseSource,
        watch: &mut Watch<'_>,
    ) -> Result<(Vec<Rgb8>, NetworkCalls)> {
        let noise = self.noise(images, seed, rng)?;
        let sampled = self.sample(images, &noise, self.plan(), watch)?;
        Ok((self.decode(&sampled.latents)?, sampled.calls))
    }

    /// The noise of some images.
    ///
    /// # Shapes
    /// `(images.len(), C, H, W)`, f32 standard normal.
    ///
    /// # Errors
    /// Too little memory.
    pub fn noise(&self, images: &[Image], seed: u64, rng: NoiseSource) -> Result<Tensor> {
        let samples: Vec<u64> = images.iter().map(|it| it.sample()).collect();
        rng.batch(seed, &samples, self.latent_shape(), &Device::Cpu).context("the noise to start from")
    }

    /// Noise to the latents of one batch, with any plan.
    ///
    /// # Shapes
    /// `noise: (B, C, H, W)` f32, for B images -> `(B, C, H, W)` f32
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `watch` breaks; noise or a plan that does not fit; a network that produced NaN or
    /// infinity, naming the image.
    pub fn sample(
        &self,
        images: &[Image],
        noise: &Tensor,
        plan: Option<&SharingPlan>,
        watch: &mut Watch<'_>,
    ) -> Result<Sampled> {
        self.sample_with(images, noise, &self.sample_options(plan), watch)
    }

    /// [`sample`](Self::sample) with other steps, solver or guidance than the pipeline's.
    ///
    /// # Errors
    /// As [`sample`](Self::sample); on a GPU any solver but Euler.
    pub fn sample_with(
        &self,
        images: &[Image],
        noise: &Tensor,
        options: &SampleOptions<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Sampled> {
        let labels: Vec<u32> = images.iter().map(|it| it.label).collect();
        let (started, num_steps) = (Instant::now(), options.grid.num_steps());
        let (mut before, mut step, mut cancelled) = (noise.clone(), 0, false);
        let sampled = self.loaded.engine.sample(noise, &labels, options, &mut |report| {
            step += 1;
            let preview = report.map(|it| Preview {
                decoder: &*self.loaded.decoder,
                scale: self.loaded.scale.as_ref(),
                before: &before,
                after: it.latents,
                t: it.step.t,
                t_next: it.step.t_next,
            });
            let (batch, elapsed) = (images.len(), started.elapsed());
            let progress = Progress { finished: 0, total: batch, batch, step, num_steps, elapsed, preview };
            let flow = watch(&progress);
            // Also after the last step, which stops no solver.
            cancelled |= flow.is_break();
            if let Some(report) = report {
                before = report.latents.clone();
            }
            flow
        })?;
        match sampled {
            _ if cancelled => Err(Error::Cancelled),
            Err(error @ ModelError::Flow(FlowError::NonFinite { sample, .. })) => match images.get(sample) {
                Some(Image { label, column }) => {
                    let name = self.classes().name(*label).unwrap_or_default();
                    Err(error).context(format!("image {column} of class {label} {name}"))
                }
                None => Err(error.into()),
            },
            other => Ok(other?),
        }
    }

    /// Latents to images.
    ///
    /// # Shapes
    /// `(B, C, H, W)` -> B images
    ///
    /// # Errors
    /// Another shape; latents or pixels that are NaN or infinite.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<Rgb8>> {
        decode(&*self.loaded.decoder, self.loaded.scale.as_ref(), latents, self.config.rounding)
    }
}

impl Opened {
    /// Hashes the files and makes the sharing plan.
    ///
    /// # Errors
    /// A file with another hash than the settings say; a plan that was made for another network, or for one that is
    /// not decoupled.
    pub fn identify(self) -> Result<Identified> {
        let config = self.identified()?;
        let (config, plan, made_for) = self.planned(config)?;
        Ok(Identified { opened: self, config, plan, made_for })
    }

    /// Makes the sharing plan of identified settings.
    fn planned(&self, mut config: PipelineConfig) -> Result<(PipelineConfig, Option<SharingPlan>, MadeFor)> {
        let made_for = made_for(&config, &self.model_name(&config))?;
        let plan = config.sharing.plan(&made_for, config.grid().num_steps())?;
        if let (Sharing::File(_), Some(plan)) = (&config.sharing, &plan) {
            config.sharing = Sharing::Plan(plan.clone());
        }
        if plan.is_some() && !self.network.family.is_decoupled() {
            return invalid(format!(
                "expected a network of two halves to share, got {:?}",
                self.network.family
            ));
        }
        Ok((config, plan, made_for))
    }

    /// Identifies the files and reads network and decoder.
    ///
    /// # Errors
    /// As [`identify`](Self::identify) and [`Identified::load`].
    pub fn load(self) -> Result<Pipeline> {
        self.identify()?.load()
    }
}

/// Weights that were hashed: everything that images depend on is known, and nothing was read into memory yet.
#[derive(Debug)]
pub struct Identified {
    opened: Opened,
    config: PipelineConfig,
    plan: Option<SharingPlan>,
    made_for: MadeFor,
}

impl Identified {
    /// The settings, as [`Pipeline::config`] has them.
    #[must_use]
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// Reads network and decoder.
    ///
    /// # Errors
    /// A file that is damaged or holds another network; too little memory.
    pub fn load(self) -> Result<Pipeline> {
        let Self { opened, config, plan, made_for } = self;
        let decoder = opened.load_decoder()?;
        let scale = opened.file.latents().map(Scale::new).transpose()?;
        let (engine, solver) = (opened.load_engine()?, config.solver.solver()?);
        let loaded = Arc::new(Loaded { opened, engine, decoder, scale });
        Ok(Pipeline { config, solver, plan, made_for, loaded })
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("config", &self.config).finish_non_exhaustive()
    }
}
