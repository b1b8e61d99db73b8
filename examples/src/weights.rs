//! From `--weights`, `--preset` and `--vae` to a network with all that belongs to it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use ddt_adapters::hub::{HubOptions, find_cached};
use ddt_adapters::{Autoencoder, KlAutoencoder, KlConfig, PixelSpace, TinyDecoder};
use ddt_checkpoint::{Checkpoint, sha256_file};
use ddt_model::{Ddt, DdtConfig, DdtFile, LatentInfo};
use serde::Serialize;

use crate::classes::ClassTable;
use crate::cli::{Args, Resolution, VaeChoice, WeightsChoice};
use crate::normalized::Normalized;
use crate::{assets, hub_files};

/// Pixels along a side of one latent position, for all autoencoders that have names here but `pixels`.
const DOWNSCALE: usize = 8;

/// Where weights came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Embedded in the program.
    Demo,
    /// The hub, or its cache.
    Hub,
    /// A file that the user named.
    File,
}

/// Weights that were found and described, but not read yet.
#[derive(Debug)]
pub struct Weights {
    /// Where they came from.
    pub origin: Origin,
    /// Sizes of the network.
    pub config: DdtConfig,
    /// Name of the sizes and SHA-256 of the file: the same on every machine, wherever the file lies.
    pub identity: String,
    /// The classes, in the order of labels.
    pub classes: ClassTable,
    /// Height and width of a latent.
    pub latent_size: (usize, usize),
    /// Name of the autoencoder of these latents.
    pub autoencoder: String,
    file: DdtFile,
    decoder: DecoderFile,
}

/// Where the decoder's weights are.
#[derive(Debug)]
enum DecoderFile {
    Pixels,
    Embedded,
    Path(PathBuf),
}

/// A network, and the decoder of its latents.
pub struct Model {
    /// Noise to latents.
    pub network: Ddt,
    /// Latents to pixels.
    pub decoder: Box<dyn Autoencoder>,
}

impl Weights {
    /// Finds what the command line asks for, downloading it if it says so, and reads its description.
    ///
    /// # Errors
    ///
    /// A file that is absent, damaged or no network; sizes that are unknown or contradict each other; an
    /// autoencoder that cannot be had; a download that fails.
    pub fn find(args: &Args, resolution: Resolution, hub: &HubOptions) -> Result<Self> {
        let sizes = args.preset.as_deref().map(DdtConfig::preset).transpose().context("--preset")?;
        let (origin, path) = match &args.weights {
            WeightsChoice::Demo => (Origin::Demo, None),
            WeightsChoice::File(path) => (Origin::File, Some(path.clone())),
            WeightsChoice::Hub => (Origin::Hub, Some(hub_files::fetch(hub_files::network(resolution), hub)?)),
            WeightsChoice::Auto => match cached(args, resolution, hub) {
                Some(path) => (Origin::Hub, Some(path)),
                None => (Origin::Demo, None),
            },
        };
        let file = match &path {
            None => assets::demo()?,
            Some(path) => open(path)?,
        };
        let config = sizes_of(&file, sizes, origin)?;
        let (latent_size, autoencoder) = latents_of(&file, &config, args, resolution)?;
        let decoder = match (&args.vae, autoencoder.as_str()) {
            (VaeChoice::File(path), _) => DecoderFile::Path(path.clone()),
            (VaeChoice::Auto, "pixels") => DecoderFile::Pixels,
            (VaeChoice::Auto, "tiny-flux2") => DecoderFile::Embedded,
            (VaeChoice::Auto, "sd-vae-ft-ema") => DecoderFile::Path(published_decoder(origin, hub)?),
            (VaeChoice::Auto, other) => bail!(
                "the weights were trained with the autoencoder {other:?}, which does not come with this program; \
                 name its weights with --vae PATH"
            ),
        };
        let classes = match file.classes() {
            Some(names) => ClassTable::from_names(names).context("class names in the weights file")?,
            None if config.num_classes == 1000 => ClassTable::imagenet()?,
            None => ClassTable::from_names((0..config.num_classes).map(|class| format!("class {class}")))?,
        };
        let sha256 = match &path {
            None => assets::demo_sha256(),
            Some(path) => sha256_of(path)?,
        };
        let identity = format!("{} sha256:{sha256}", name_of(&config));
        Ok(Self { origin, config, identity, classes, latent_size, autoencoder, file, decoder })
    }

    /// Whether these weights draw ImageNet's classes.
    #[must_use]
    pub fn is_imagenet(&self) -> bool {
        self.config.num_classes == 1000
    }

    /// Height and width of an image, in pixels.
    #[must_use]
    pub fn image_size(&self) -> (usize, usize) {
        let factor = if matches!(self.decoder, DecoderFile::Pixels) { 1 } else { DOWNSCALE };
        (self.latent_size.0 * factor, self.latent_size.1 * factor)
    }

    /// Reads network and decoder; the network computes in `dtype`, the decoder in f32.
    ///
    /// # Errors
    ///
    /// A file that is damaged, or holds another network; too little memory.
    pub fn load(&self, dtype: DType) -> Result<Model> {
        let decoder = self.load_decoder()?;
        let network = self.file.load(Some(&self.config), dtype, &Device::Cpu)?;
        Ok(Model { network, decoder })
    }

    fn load_decoder(&self) -> Result<Box<dyn Autoencoder>> {
        let decoder: Box<dyn Autoencoder> = match &self.decoder {
            DecoderFile::Pixels => Box::new(PixelSpace),
            DecoderFile::Embedded => Box::new(assets::tiny_decoder()?),
            DecoderFile::Path(path) => read_decoder(path)?,
        };
        let (got, expected) = (decoder.latent_channels(), self.config.in_channels);
        ensure!(
            got == expected,
            "expected an autoencoder of {expected} latent channels, as the network's, got {got}; name another with --vae"
        );
        ensure!(
            self.latent_size.0 * decoder.downscale() == self.image_size().0,
            "expected an autoencoder that scales by {DOWNSCALE}, got one that scales by {}",
            decoder.downscale()
        );
        match self.file.latents() {
            None => Ok(decoder),
            Some(info) => Ok(Box::new(Normalized::new(decoder, info, &Device::Cpu)?)),
        }
    }
}

/// The published weights, if they and their autoencoder are at hand.
fn cached(args: &Args, resolution: Resolution, hub: &HubOptions) -> Option<PathBuf> {
    let network = find_cached(hub_files::network(resolution), hub)?;
    let decoder = args.vae != VaeChoice::Auto || find_cached(hub_files::autoencoder(), hub).is_some();
    decoder.then_some(network)
}

fn open(path: &Path) -> Result<DdtFile> {
    ensure!(
        path.exists(),
        "there is no weights file {}; expected auto, demo, hub or the path of a file for --weights",
        path.display()
    );
    Ok(DdtFile::open(path)?)
}

/// The sizes that file and user agree on.
fn sizes_of(file: &DdtFile, asked: Option<DdtConfig>, origin: Origin) -> Result<DdtConfig> {
    match (file.config(), asked) {
        (Some(found), Some(asked)) if *found != asked => bail!(
            "the weights say that they are {}, which contradicts --preset {}; leave --preset out",
            name_of(found),
            name_of(&asked)
        ),
        (Some(found), _) => Ok(found.clone()),
        (None, Some(asked)) => Ok(asked),
        (None, None) if origin == Origin::Hub => Ok(DdtConfig::preset("ddt-xl2-22en6de")?),
        (None, None) => bail!(
            "the weights file does not say the sizes of its network; add --preset NAME, one of {}",
            DdtConfig::preset_names().join(", ")
        ),
    }
}

/// Size of the latents and name of their autoencoder: the file's word, or what the published weights have.
fn latents_of(
    file: &DdtFile,
    config: &DdtConfig,
    args: &Args,
    resolution: Resolution,
) -> Result<((usize, usize), String)> {
    if let Some(LatentInfo { autoencoder, height, width, .. }) = file.latents() {
        return Ok(((*height, *width), autoencoder.clone()));
    }
    let channels = config.in_channels;
    ensure!(
        channels == 4 || args.vae != VaeChoice::Auto,
        "the weights do not say whose latents they draw, and have {channels} channels where sd-vae-ft-ema has 4; \
         name an autoencoder with --vae PATH"
    );
    let side = resolution.side() / DOWNSCALE;
    ensure!(
        side.is_multiple_of(config.patch_size),
        "latents of {side} x {side} do not divide into the network's patches of {0} x {0}",
        config.patch_size
    );
    Ok(((side, side), "sd-vae-ft-ema".to_owned()))
}

fn published_decoder(origin: Origin, hub: &HubOptions) -> Result<PathBuf> {
    let entry = hub_files::autoencoder();
    if origin == Origin::Hub {
        return hub_files::fetch(entry, hub);
    }
    find_cached(entry, hub).with_context(|| {
        format!(
            "these weights need the autoencoder {}/{} ({}), which is not in the hub's cache {}; \
             name its file with --vae PATH, or run once with --weights hub",
            entry.repository,
            entry.file,
            hub_files::cost(&[entry]),
            hub.cache.display()
        )
    })
}

/// Checks that a file named by `--vae` can be read, which is known before any download.
///
/// # Errors
///
/// A file that is absent, damaged or holds no tensors.
pub fn check_autoencoder(choice: &VaeChoice) -> Result<()> {
    match choice {
        VaeChoice::Auto => Ok(()),
        VaeChoice::File(path) => open_decoder(path).map(drop),
    }
}

fn open_decoder(path: &Path) -> Result<Checkpoint> {
    ensure!(
        path.exists(),
        "there is no file {}; expected auto or the path of a file for --vae",
        path.display()
    );
    Checkpoint::open(path).context("--vae")
}

fn read_decoder(path: &Path) -> Result<Box<dyn Autoencoder>> {
    let file = open_decoder(path)?;
    let broken = || format!("cannot read the autoencoder {}", path.display());
    if file.info("decoder.conv_in.weight").is_some() {
        let decoder = KlAutoencoder::load(&KlConfig::sd_vae_ft_ema(), &file, &Device::Cpu);
        return Ok(Box::new(decoder.with_context(broken)?));
    }
    Ok(Box::new(TinyDecoder::load(&file, &Device::Cpu).with_context(broken)?))
}

/// The preset's name, or sizes in the same style.
fn name_of(config: &DdtConfig) -> String {
    let preset = |name: &String| DdtConfig::preset(name).is_ok_and(|preset| preset == *config);
    DdtConfig::preset_names().into_iter().find(preset).unwrap_or_else(|| {
        let DdtConfig { hidden_size, num_encoder_blocks, num_decoder_blocks, .. } = config;
        format!("ddt-{hidden_size}-{num_encoder_blocks}en{num_decoder_blocks}de")
    })
}

/// The hash of a file; the hub's cache has it as the name of what it links to.
fn sha256_of(path: &Path) -> Result<String> {
    let target = path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?;
    let in_cache = target.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    let is_hash = |name: &&str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match target.file_name().and_then(|name| name.to_str()).filter(is_hash) {
        Some(name) if in_cache => Ok(name.to_owned()),
        _ => Ok(sha256_file(path)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_presets_from_others() {
        let xl = DdtConfig::preset("ddt-xl2").unwrap();
        assert_eq!(name_of(&xl), "ddt-xl2-22en6de");
        assert_eq!(name_of(&DdtConfig { in_channels: 32, ..xl }), "ddt-1152-22en6de");
    }

    #[test]
    fn the_cache_knows_the_hash_already() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let name = "ab".repeat(32);
        std::fs::write(blobs.join(&name), b"abc").unwrap();
        assert_eq!(sha256_of(&blobs.join(&name)).unwrap(), name);
        let plain = folder.path().join(&name);
        std::fs::write(&plain, b"abc").unwrap();
        assert!(sha256_of(&plain).unwrap().starts_with("ba7816bf8f01cfea"));
    }
}
