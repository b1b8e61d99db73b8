//! Where the weights of an autoencoder are, and what they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Error};
use ddt_adapters::{Decode, KlConfig, KlDecoder, PixelSpace, TinyDecoder, load_exact};
use ddt_cuda::{CudaKlDecoder, DECODER_BYTES};
use ddt_files::Checkpoint;

use crate::assets;
use crate::gpu::Place;
use crate::identity::sha256_of;
use crate::sampler_args::VaeChoice;

/// An autoencoder that decodes, not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecoderFile {
    /// Latents are pixels.
    Pixels,
    /// The tiny one that is embedded in the program.
    Embedded,
    /// The published one, in the hub's cache.
    Published(PathBuf),
    /// A file that the user named.
    File(PathBuf),
}

impl DecoderFile {
    /// Name and SHA-256; of a file that the user named, its own name.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn identity(&self) -> Result<String> {
        Ok(match self {
            Self::Pixels => "pixels".to_owned(),
            Self::Embedded => format!("tiny-flux2 sha256:{}", assets::tiny_decoder_sha256()),
            Self::Published(path) => format!("sd-vae-ft-ema sha256:{}", sha256_of(path)?),
            Self::File(path) => {
                let name = path.file_name().unwrap_or_default();
                format!("{} sha256:{}", name.display(), sha256_of(path)?)
            }
        })
    }

    /// Reads it, to compute in f32, or where and as `gpu` says; the tiny ones compute on the CPU whatever it says.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or holds no autoencoder that is known here; no such GPU.
    pub fn load(&self, gpu: Option<Place>) -> Result<Box<dyn Decode>> {
        Ok(match self {
            Self::Pixels => Box::new(PixelSpace),
            Self::Embedded => Box::new(assets::tiny_decoder()?),
            Self::Published(path) | Self::File(path) => read(path, gpu)?,
        })
    }
}

/// Checks that a file named by `--vae` can be read, which is known before any download.
///
/// # Errors
///
/// A file that is absent, damaged or holds no tensors.
pub fn check(choice: &VaeChoice) -> Result<()> {
    match choice {
        VaeChoice::Auto => Ok(()),
        VaeChoice::File(path) => open(path).map(drop),
    }
}

fn open(path: &Path) -> Result<Checkpoint> {
    ensure!(
        path.exists(),
        "there is no file {}; expected auto or the path of a file for --vae",
        path.display()
    );
    Checkpoint::open(path).context("--vae")
}

fn read(path: &Path, gpu: Option<Place>) -> Result<Box<dyn Decode>> {
    let file = open(path)?;
    let broken = || format!("cannot read the autoencoder {}", path.display());
    if file.info("decoder.conv_in.weight").is_some() {
        let cfg = KlConfig::sd_vae_ft_ema();
        return Ok(match gpu {
            None => Box::new(KlDecoder::load(&cfg, &file, DType::F32, &Device::Cpu).with_context(broken)?),
            Some(Place { device, precision }) => {
                let decoder = load_exact(&file, DType::F32, &Device::Cpu, KlDecoder::reads, |vb| {
                    CudaKlDecoder::open(device, &cfg, precision, DECODER_BYTES, vb).map_err(Error::wrap)
                });
                Box::new(decoder.with_context(broken).context("--device")?)
            }
        });
    }
    Ok(Box::new(TinyDecoder::load(&file, DType::F32, &Device::Cpu).with_context(broken)?))
}
