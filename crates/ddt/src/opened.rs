//! Finds, opens and checks the files of a description, before any weights are read.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use ddt_flow::Guidance;
use ddt_hub::{Hub, PublishedAutoencoder, Release};
use ddt_model::{DdtConfig, DdtFile, Family, NetworkConfig, VelocityNetwork};
use ddt_sharing::MadeFor;

use crate::{
    classes::ClassTable,
    config::{Image, PipelineConfig, Place, Request, Source, USUAL_STEPS, name_of, usual_grid},
    decoder_file::{DecoderFile, cached, downscale_of},
    decoding::Decoder,
    engine::{self, Engine},
    error::{Context, Result, invalid},
    share::Sharing,
    weights::{Bytes, demo_network, sha256_of},
};

/// Weights that were found, opened and checked against their settings, but not read yet.
///
/// All mistakes that can be known before minutes of work are errors of [`Opened::new`] or [`Opened::check`].
pub struct Opened {
    /// The settings, complete but for the files' hashes.
    pub(crate) config: PipelineConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) classes: ClassTable,
    /// Height and width.
    pub(crate) latent_size: (usize, usize),
    pub(crate) file: DdtFile,
    guiding: Option<GuidingFile>,
    weights: Bytes,
    decoder: DecoderFile,
}

/// The network to guide away from.
struct GuidingFile {
    path: PathBuf,
    file: DdtFile,
    /// The assumed autoencoder, if the file does not state its own.
    like: Option<NetworkConfig>,
}

impl Opened {
    /// Finds and opens the files, and checks that all settings fit each other.
    ///
    /// # Errors
    /// [`Error::NotFetched`](crate::Error::NotFetched) for published weights that are not in the cache of `hub`; a
    /// file that is absent, damaged or holds no network; sizes that are unknown or contradict each other; an
    /// autoencoder, guiding network, plan or device that does not fit.
    pub fn new(config: &PipelineConfig, hub: &Hub) -> Result<Self> {
        engine::check(config)?;
        let given = match config.autoencoder.from.to_str() {
            Some("auto" | "tiny-flux2" | "pixels") => None,
            Some(name) if name.parse::<PublishedAutoencoder>().is_ok() => None,
            _ => Some(DecoderFile::open(&config.autoencoder.from)?),
        };
        let release = config.weights.from.to_str().and_then(|it| it.parse::<Release>().ok());
        let weights = match release {
            Some(release) => Bytes::File(cached(&release.network(), release, hub)?),
            None if config.weights.is("demo") => Bytes::Bundled(demo_network()?),
            None => Bytes::File(config.weights.from.clone()),
        };
        let file = match &weights {
            Bytes::Bundled(bytes) => DdtFile::from_bytes(*bytes, "the demo")?,
            Bytes::File(path) => {
                if !path.exists() {
                    let names = Release::ALL.map(|it| it.to_string()).join(", ");
                    return invalid(format!(
                        "there is no weights file {}; expected demo, {names} or the path of a file",
                        path.display()
                    ));
                }
                DdtFile::open(path)?
            }
        };
        let network = agreed(&file, config, release)?;
        let asked = config.autoencoder.from.to_str().filter(|it| *it != "auto");
        let name = match (&given, asked) {
            (Some(_), _) => String::new(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => usual_autoencoder(&file, &network.sizes, release)?,
        };
        // A wrong image size is found before a decoder that has yet to be fetched.
        let downscale = given.as_ref().map_or_else(|| downscale_of(&name), DecoderFile::downscale);
        let latent_size = match file.latents() {
            Some(it) => (it.height, it.width),
            None => latent_size(&network.sizes, downscale, config.image_size, release)?,
        };
        let decoder = given.map_or_else(|| DecoderFile::named(&name, release, hub), Ok)?;
        let downscale = decoder.downscale();
        decoder.check(network.sizes.in_channels, latent_size)?;
        let classes = match file.classes() {
            Some(names) => ClassTable::from_names(names).context("class names in the weights file")?,
            None if network.sizes.num_classes == 1000 => ClassTable::imagenet()?,
            None => ClassTable::from_names((0..network.sizes.num_classes).map(|it| format!("class {it}")))?,
        };
        let guiding = config
            .guiding_network
            .as_ref()
            .map(|it| GuidingFile::open(&it.from, &network, hub))
            .transpose()?;
        let guidance = match config.guidance {
            Some(it) => it,
            None => usual_guidance(&network, config.guiding_network.is_some(), latent_size.0 * downscale)?,
        };
        let (height, width) = latent_size;
        let config = PipelineConfig {
            network: Some(network.clone()),
            image_size: Some((height * downscale, width * downscale)),
            grid: config.grid.clone().or_else(|| Some(usual_grid(&network, USUAL_STEPS))),
            guidance: Some(guidance),
            ..config.clone()
        };
        let opened = Self { config, network, classes, latent_size, file, guiding, weights, decoder };
        opened.check_sampler(&opened.config)?;
        Ok(opened)
    }

    /// Checks that solver, guidance and sharing of complete settings fit the weights and the device.
    pub(crate) fn check_sampler(&self, config: &PipelineConfig) -> Result<()> {
        engine::check(config)?;
        let guidance = config.guidance.unwrap_or(Guidance::none());
        let channels = self.network.sizes.in_channels;
        if let Some(guided) = guidance.channels().map(usize::from).filter(|it| *it > channels) {
            return invalid(format!(
                "expected at most {channels} guided channels, as the latents have, got {guided}"
            ));
        }
        let is_file = matches!(config.sharing, Sharing::File(_));
        if is_file && (config.guiding_network.is_some() || guidance.channels().is_some()) {
            return invalid(
                "plan files are made for guidance away from \"no class\" in all channels; expected no guiding network and no guided channels with one",
            );
        }
        config.sharing.check(&made_for(config, "any")?, config.grid().num_steps())
    }

    /// The settings, complete but for the files' hashes.
    #[must_use]
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// The classes, in the order of labels.
    #[must_use]
    pub fn classes(&self) -> &ClassTable {
        &self.classes
    }

    /// Height and width of an image, in pixels.
    #[must_use]
    pub fn image_size(&self) -> (usize, usize) {
        let factor = self.decoder.downscale();
        (self.latent_size.0 * factor, self.latent_size.1 * factor)
    }

    /// Whether the weights are the demo's.
    #[must_use]
    pub fn is_demo(&self) -> bool {
        matches!(self.weights, Bytes::Bundled(_))
    }

    /// Whether these weights generate ImageNet's classes.
    #[must_use]
    pub fn is_imagenet(&self) -> bool {
        self.network.sizes.num_classes == 1000
    }

    /// A number of images to make at once that memory holds and that is fast.
    #[must_use]
    pub fn usual_batch(&self) -> usize {
        match (self.is_imagenet(), self.image_size().0 >= 512, self.config.device) {
            (false, ..) => 40,
            (true, false, Place::Cpu) => 4,
            (true, true, Place::Cpu) => 1,
            (true, false, Place::Cuda(_)) => 64,
            (true, true, Place::Cuda(_)) => 32,
        }
    }

    /// Checks that a request fits the weights.
    ///
    /// # Errors
    /// A label that is no class, no class at all, a batch of no images, or more images than a class can have.
    pub fn check(&self, request: &Request) -> Result<()> {
        let count = self.classes.len();
        if let Some(label) = request.classes.iter().find(|it| **it as usize >= count) {
            return invalid(format!("expected classes in 0..={}, got {label}", count - 1));
        }
        if request.classes.is_empty() || request.batch == 0 {
            return invalid("expected at least one class and a batch of at least one image");
        }
        if !(1..=Image::PER_CLASS).contains(&request.images_per_class) {
            return invalid(format!(
                "expected 1 to 1000000 images of a class, got {}",
                request.images_per_class
            ));
        }
        Ok(())
    }

    /// The settings with names and hashes instead of paths.
    pub(crate) fn identified(&self) -> Result<PipelineConfig> {
        let mut config = self.config.clone();
        config.weights = identify(&config.weights, Some(self.weights.sha256()?), None)?;
        let name = Some(self.decoder.name.as_str()).filter(|it| !it.is_empty());
        config.autoencoder = identify(&config.autoencoder, self.decoder.sha256()?, name)?;
        if let Some(source) = &config.guiding_network {
            let path = self.guiding.as_ref().map_or(&source.from, |it| &it.path);
            config.guiding_network = Some(identify(source, Some(sha256_of(path)?), None)?);
        }
        // The number of a GPU differs between machines.
        if let Place::Cuda(_) = config.device {
            config.device = Place::Cuda(None);
        }
        Ok(config)
    }

    /// The name of the network that plans are made for: sizes, latents and hash.
    pub(crate) fn model_name(&self, identified: &PipelineConfig) -> String {
        let (height, width) = self.latent_size;
        let hash = identified.weights.sha256.as_deref().unwrap_or_default();
        format!("{} {height}x{width} sha256:{hash}", name_of(&self.network))
    }

    /// Reads the decoder, to compute in f32 on the CPU, or as the device says.
    pub(crate) fn load_decoder(&self) -> Result<Decoder> {
        let decoder = self.decoder.load(&self.config)?;
        let (got, expected) = (decoder.latent_channels(), self.network.sizes.in_channels);
        if got != expected {
            return invalid(format!(
                "expected an autoencoder of {expected} latent channels, as the network's, got {got}; name another"
            ));
        }
        let (got, expected) = (decoder.downscale(), self.decoder.downscale());
        if got != expected {
            return invalid(format!(
                "expected an autoencoder that scales by {expected}, got one that scales by {got}"
            ));
        }
        Ok(decoder)
    }

    /// Reads the network, and the one to guide away from.
    pub(crate) fn load_engine(&self) -> Result<Engine> {
        let guiding = self.guiding.as_ref().map(|it| it.load(&self.config)).transpose()?;
        Engine::load(&self.config, &self.network, &self.file, guiding)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("config", &self.config).finish_non_exhaustive()
    }
}

impl GuidingFile {
    /// Opens a release or a file.
    fn open(from: &Path, main: &NetworkConfig, hub: &Hub) -> Result<Self> {
        let blame = "the guiding network";
        let release = from.to_str().and_then(|it| it.parse::<Release>().ok());
        let path = match release {
            Some(release) => cached(&release.network(), release, hub)?,
            None => from.to_owned(),
        };
        if !path.exists() {
            let names = Release::ALL.map(|it| it.to_string()).join(", ");
            return invalid(format!(
                "{blame}: there is no file {}; expected {names} or the path of a file",
                path.display()
            ));
        }
        let file = DdtFile::open(&path).context(blame)?;
        let release = release.map(|it| NetworkConfig::preset(it.sizes())).transpose()?;
        let task = |it: &NetworkConfig| (it.sizes.in_channels, it.sizes.num_classes);
        let expected = task(main);
        match file.network_config().map(task) {
            Some(got) if got != expected => invalid(format!(
                "{blame}: expected a network of {} channels and {} classes, as the one it guides, got {} and {}",
                expected.0, expected.1, got.0, got.1
            )),
            Some(_) => Ok(Self { path, file, like: None }),
            None => Ok(Self { path, file, like: Some(release.unwrap_or_else(|| main.clone())) }),
        }
    }

    fn load(&self, config: &PipelineConfig) -> Result<Box<dyn VelocityNetwork>> {
        let loaded =
            self.file.load_network(self.like.as_ref(), config.dtype.into(), &engine::device(config.device)?);
        loaded.context("the guiding network")
    }
}

/// The autoencoder that the weights were trained with: as the file states, or that of the published weights.
fn usual_autoencoder(file: &DdtFile, sizes: &DdtConfig, release: Option<Release>) -> Result<String> {
    match (file.latents(), release, sizes.in_channels) {
        (Some(it), ..) => Ok(it.autoencoder.clone()),
        (None, Some(release), _) => Ok(release.autoencoder().to_string()),
        (None, None, 4) => Ok(PublishedAutoencoder::SdVaeFtEma.to_string()),
        (None, None, channels) => invalid(format!(
            "the weights do not say whose latents they generate, and have {channels} channels where sd-vae-ft-ema has 4; \
             name the autoencoder, such as rae-dinov2-b-256 for 768 channels, or its file"
        )),
    }
}

/// Height and width of the latents of weights that do not state them.
fn latent_size(
    sizes: &DdtConfig,
    downscale: usize,
    image_size: Option<(usize, usize)>,
    release: Option<Release>,
) -> Result<(usize, usize)> {
    let side = release.map_or(256, Release::side);
    let (height, width) = image_size.unwrap_or((side, side));
    let patch = downscale * sizes.patch_size;
    if height == 0 || width == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
        return invalid(format!(
            "expected images with sides that are multiples of {patch}, got {height} x {width}"
        ));
    }
    Ok((height / downscale, width / downscale))
}

/// The network that file and user agree on.
fn agreed(file: &DdtFile, config: &PipelineConfig, release: Option<Release>) -> Result<NetworkConfig> {
    match (file.network_config(), &config.network, release) {
        (Some(found), Some(asked), _) if found != asked => invalid(format!(
            "the weights say that they are {}, which contradicts {}; leave the sizes out, or name the file of such weights",
            name_of(found),
            name_of(asked)
        )),
        (Some(found), _, _) => Ok(found.clone()),
        (None, Some(asked), _) => Ok(asked.clone()),
        (None, None, Some(release)) => Ok(NetworkConfig::preset(release.sizes())?),
        (None, None, None) => invalid(format!(
            "the weights file does not say the sizes of its network; name them, one of {}",
            NetworkConfig::preset_names().join(", ")
        )),
    }
}

/// The settings that a plan must have been made for, for a network of this name.
pub(crate) fn made_for(config: &PipelineConfig, model: &str) -> Result<MadeFor> {
    let guidance = config.guidance.unwrap_or(Guidance::none());
    let made_for = MadeFor::new(model).with("grid", config.grid())?.with("guidance", &guidance)?;
    Ok(made_for.with("solver", &config.solver)?)
}

/// The published guidance for ImageNet, that of DiT^DH away from a weaker network only; the demo, smaller and less
/// sure, needs it from the start.
fn usual_guidance(network: &NetworkConfig, autoguided: bool, image_height: usize) -> Result<Guidance> {
    let large = image_height >= 512;
    if network.family == Family::DitDh && network.sizes.num_classes == 1000 {
        let scale = if large { 1.5 } else { 1.42 };
        return Ok(if autoguided { Guidance::new(scale, (0.0, 1.0))?.closed() } else { Guidance::none() });
    }
    let (scale, interval) = match network.sizes.num_classes {
        1000 if large => (3.0, (0.3, 1.0)),
        1000 => (2.0, (0.3, 1.0)),
        _ => (4.0, (0.0, 1.0)),
    };
    Ok(Guidance::new(scale, interval)?)
}

/// A source without its folder, with its hash, which must be the one it had.
fn identify(source: &Source, sha256: Option<String>, name: Option<&str>) -> Result<Source> {
    let file_name = || PathBuf::from(source.from.file_name().unwrap_or_default());
    let from = name.map_or_else(file_name, PathBuf::from);
    match (&source.sha256, &sha256) {
        (Some(expected), Some(got)) if expected != got => {
            invalid(format!("expected {} with sha256:{expected}, got sha256:{got}", source.from.display()))
        }
        _ => Ok(Source { from, sha256 }),
    }
}
