//! The autoencoder that decodes: found by its name or its file, opened, and loaded later.

use std::path::{Path, PathBuf};

use candle_core::DType;
use ddt_adapters::{KlConfig, LoadError, PixelSpace, RaeDecoderConfig, RaeStatistics, TinyDecoder};
use ddt_files::{Checkpoint, sha256};
use ddt_hub::{Hub, HubFile, PublishedAutoencoder, Release};

use crate::{
    config::PipelineConfig,
    decoding::{self, Decoder},
    engine,
    error::{Context, Error, Result, invalid},
    weights::{Bytes, sha256_of, tiny_decoder},
};

/// A tensor that only the decoder of a representation autoencoder has.
const RAE_MARK: &str = "decoder_embed.weight";

/// An autoencoder that decodes, and its name, which a file has not.
pub(crate) struct DecoderFile {
    pub(crate) name: String,
    bytes: Option<Bytes>,
    /// Sizes of a representation autoencoder, and the file of its statistics.
    rae: Option<(RaeDecoderConfig, PathBuf)>,
}

impl DecoderFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            let names = PublishedAutoencoder::ALL.map(|it| it.to_string()).join(", ");
            return invalid(format!(
                "there is no autoencoder {}; expected auto, {names} or the path of a file",
                path.display()
            ));
        }
        let file = Checkpoint::open(path).context("the autoencoder")?;
        if file.info(RAE_MARK).is_none() {
            return Ok(Self { name: String::new(), bytes: Some(Bytes::File(path.to_owned())), rae: None });
        }
        let statistics = file.path().with_file_name("stat.pt");
        if !statistics.exists() {
            return invalid(format!(
                "{} is the decoder of an RAE; expected the statistics of its latents beside it, in {}",
                path.display(),
                statistics.display()
            ));
        }
        Self::rae("", path.to_owned(), &file, statistics)
    }

    fn rae(name: &str, path: PathBuf, file: &Checkpoint, statistics: PathBuf) -> Result<Self> {
        let rae = RaeDecoderConfig::of(file, None).context("the autoencoder")?;
        let bytes = Some(Bytes::File(path));
        Ok(Self { name: name.to_owned(), bytes, rae: Some((rae, statistics)) })
    }

    pub(crate) fn named(name: &str, release: Option<Release>, hub: &Hub) -> Result<Self> {
        let bytes = match name {
            "pixels" => None,
            "tiny-flux2" => Some(Bytes::Bundled(tiny_decoder()?)),
            _ => {
                let Ok(autoencoder) = name.parse::<PublishedAutoencoder>() else {
                    return invalid(format!(
                        "the weights were trained with the autoencoder {name:?}, which is not known here; name its file"
                    ));
                };
                let release = release.filter(|it| it.autoencoder() == autoencoder);
                let to_fetch = release.map_or_else(|| name.to_owned(), |it| it.to_string());
                let decoder = cached(&autoencoder.decoder(), &to_fetch, hub)?;
                if let Some(file) = autoencoder.statistics() {
                    let opened = Checkpoint::open(&decoder).context("the autoencoder")?;
                    return Self::rae(name, decoder, &opened, cached(&file, &to_fetch, hub)?);
                }
                Some(Bytes::File(decoder))
            }
        };
        Ok(Self { name: name.to_owned(), bytes, rae: None })
    }

    pub(crate) fn downscale(&self) -> usize {
        self.rae.as_ref().map_or_else(|| downscale_of(&self.name), |it| it.0.patch_size)
    }

    /// The hash of its file; with statistics, of the hashes of both files.
    pub(crate) fn sha256(&self) -> Result<Option<String>> {
        let decoder = self.bytes.as_ref().map(Bytes::sha256).transpose()?;
        match (decoder, &self.rae) {
            (Some(decoder), Some((_, statistics))) => {
                Ok(Some(sha256([decoder, sha256_of(statistics)?].concat().as_bytes())))
            }
            (decoder, _) => Ok(decoder),
        }
    }

    /// Checks that an autoencoder whose sizes are known without reading it decodes these latents.
    pub(crate) fn check(&self, channels: usize, (height, width): (usize, usize)) -> Result<()> {
        match &self.rae {
            Some((it, _)) if (it.latent_channels, it.grid, it.grid) != (channels, height, width) => {
                invalid(format!(
                    "expected an autoencoder of {channels} latent channels and {height} x {width} positions, as the \
                     network's, got one of {} channels and {} x {} positions; name another",
                    it.latent_channels, it.grid, it.grid
                ))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn load(&self, config: &PipelineConfig) -> Result<Decoder> {
        let Some(bytes) = &self.bytes else { return Ok(Box::new(PixelSpace)) };
        let file = bytes.checkpoint()?;
        let broken = || format!("cannot read the autoencoder {}", file.path().display());
        if let Some((cfg, path)) = &self.rae {
            let statistics = Checkpoint::open(path).map_err(LoadError::from);
            let device = engine::decoder_device(config)?;
            let statistics = statistics.and_then(|it| RaeStatistics::load(&it, &device));
            let statistics = statistics.context(format!("cannot read the statistics {}", path.display()))?;
            return engine::load_rae_decoder(cfg, &file, statistics, config).context(broken());
        }
        if file.info("decoder.conv_in.weight").is_some() {
            let cfg = KlConfig::sd_vae_ft_ema();
            return engine::load_kl_decoder(&cfg, &file, config).context(broken());
        }
        let device = engine::decoder_device(config)?;
        let decoder = TinyDecoder::load(&file, DType::F32, &device).context(broken())?;
        Ok(decoding::on(device, decoder))
    }
}

/// Pixels along a side of one latent position of an autoencoder that has a name here, and of files.
pub(crate) fn downscale_of(name: &str) -> usize {
    match name {
        "pixels" => 1,
        _ => name.parse().map_or(8, PublishedAutoencoder::downscale),
    }
}

/// A file in the hub's cache, which `ddt fetch NAME` puts there.
pub(crate) fn cached(file: &HubFile, name: impl ToString, hub: &Hub) -> Result<PathBuf> {
    hub.find(file).ok_or_else(|| Error::NotFetched {
        name: name.to_string(),
        file: file.to_string(),
        cache: hub.cache.clone(),
    })
}
