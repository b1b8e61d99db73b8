//! From `--weights`, `--preset` and `--vae` to a network with all that belongs to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::Decode;
use ddt_adapters::hub::{HubOptions, find_cached};
use ddt_model::{DdtConfig, DdtFile, LatentInfo, VelocityNetwork};
use serde::Serialize;

use crate::classes::ClassTable;
use crate::cli::Resolution;
use crate::decoder_file::DecoderFile;
use crate::gpu::Place;
use crate::identity::{Identity, name_of, sha256_of};
use crate::normalized::Normalized;
use crate::sampler_args::{SamplerArgs, VaeChoice, WeightsChoice};
use crate::weaker::Weaker;
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
    /// The classes, in the order of labels.
    pub classes: ClassTable,
    /// Height and width of a latent.
    pub latent_size: (usize, usize),
    /// The network's file; `None` is the demo.
    path: Option<PathBuf>,
    file: DdtFile,
    decoder: DecoderFile,
    weaker: Option<Weaker>,
}

impl Weights {
    /// Finds what the command line asks for, downloading it if it says so, and reads its description.
    ///
    /// # Errors
    ///
    /// A file that is absent, damaged or no network; sizes that are unknown or contradict each other; an
    /// autoencoder that cannot be had; a download that fails.
    pub fn find(args: &SamplerArgs, resolution: Resolution, hub: &HubOptions) -> Result<Self> {
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
            (VaeChoice::File(path), _) => DecoderFile::File(path.clone()),
            (VaeChoice::Auto, "pixels") => DecoderFile::Pixels,
            (VaeChoice::Auto, "tiny-flux2") => DecoderFile::Embedded,
            (VaeChoice::Auto, "sd-vae-ft-ema") => DecoderFile::Published(published_decoder(origin, hub)?),
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
        let weaker = args.weaker.as_deref().map(|it| Weaker::open(it, &config)).transpose()?;
        Ok(Self { origin, config, classes, latent_size, path, file, decoder, weaker })
    }

    /// Hashes the files; that of a large one takes a while, which is said.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn identify(&self) -> Result<Identity> {
        let sha256 = match &self.path {
            None => assets::demo_sha256(),
            Some(path) => sha256_of(path)?,
        };
        let (height, width) = self.latent_size;
        let network = format!("{} {height}x{width} sha256:{sha256}", name_of(&self.config));
        let weaker = self.weaker.as_ref().map(Weaker::identity).transpose()?;
        Ok(Identity { network, autoencoder: self.decoder.identity()?, weaker })
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

    /// Reads network and decoder; the network computes in `dtype`, the decoder in f32 or where and as `gpu` says.
    ///
    /// # Errors
    ///
    /// A file that is damaged, or holds another network; too little memory.
    pub fn load(
        &self,
        dtype: DType,
        gpu: Option<Place>,
    ) -> Result<(Box<dyn VelocityNetwork>, Box<dyn Decode>)> {
        let decoder = self.load_decoder(gpu)?;
        // A file that does not say its sizes is read as a plain DDT.
        let stated = self.file.network_config();
        let asked = if stated.is_none() { Some(self.config.clone().into()) } else { None };
        let network = self.file.load_network(asked.as_ref(), dtype, &Device::Cpu)?;
        ensure!(
            network.decoupled().is_some(),
            "expected weights of a condition encoder and a velocity decoder, got those of {:?}",
            network.config().family
        );
        Ok((network, decoder))
    }

    /// Reads the network that guidance leads away from, if there is one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_weaker(&self, dtype: DType) -> Result<Option<Box<dyn VelocityNetwork>>> {
        self.weaker.as_ref().map(|it| it.load(dtype)).transpose()
    }

    /// The network's weights by their published names, as they are stored.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.file.weights(Some(&self.config))?)
    }

    fn load_decoder(&self, gpu: Option<Place>) -> Result<Box<dyn Decode>> {
        let decoder = self.decoder.load(gpu)?;
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
fn cached(args: &SamplerArgs, resolution: Resolution, hub: &HubOptions) -> Option<PathBuf> {
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
    args: &SamplerArgs,
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ddt_files::{Checkpoint, write_safetensors};

    use super::*;
    use crate::cli::Args;

    /// The demo's weights in a file that does not say their latents, with an autoencoder that is named.
    fn nameless(folder: &Path) -> SamplerArgs {
        let file = Checkpoint::from_bytes(ddt_demo::NETWORK, "the demo").unwrap();
        let tensor = |name: &&str| ((*name).to_owned(), file.tensor(name, &Device::Cpu).unwrap());
        let tensors = file.names().iter().map(tensor).collect();
        let mut metadata = file.metadata().clone();
        metadata.remove("ddt.latents").unwrap();
        let path = folder.join("nameless.safetensors");
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let vae = folder.join("own.safetensors");
        std::fs::write(&vae, ddt_demo::TINY_DECODER).unwrap();
        let (path, vae) = (path.to_str().unwrap(), vae.to_str().unwrap());
        let words = ["imagenet256", "--weights", path, "--vae", vae];
        Args::try_parse_from(words).unwrap().sampler
    }

    #[test]
    fn an_identity_has_the_size_of_latents_and_the_autoencoder_really_used() {
        let folder = tempfile::tempdir().unwrap();
        let args = nameless(folder.path());
        let hub = HubOptions {
            cache: folder.path().join("cache"),
            endpoint: "https://hub.invalid".to_owned(),
            token: None,
            offline: true,
        };
        let identity = |resolution| Weights::find(&args, resolution, &hub).unwrap().identify().unwrap();
        let (small, large) = (identity(Resolution::R256), identity(Resolution::R512));
        assert!(small.network.starts_with("ddt-256-6en2de 32x32 sha256:"), "{}", small.network);
        assert_eq!(small.network.replace("32x32", "64x64"), large.network);
        let expected = format!("own.safetensors sha256:{}", assets::tiny_decoder_sha256());
        assert_eq!(small.autoencoder, expected);
    }
}
