//! The published files: their hashes, sizes and tensors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt::{
    adapters::{KlConfig, KlDecoder, KlEncoder, RaeDecoder, RaeDecoderConfig, RaeStatistics},
    files::{Checkpoint, sha256_file},
    hub::{HubFile, Release},
    model::{DdtFile, NetworkConfig},
};

use crate::terminal::{Interrupted, Terminal};

/// Compares a file with the hash that is its name in the cache.
pub(super) fn check_hash(file: &HubFile, path: &Path, terminal: &Terminal) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let blob = path.canonicalize().with_context(unreadable)?;
    let bytes = blob.metadata().with_context(unreadable)?.len();
    terminal.say(format!("hashing {file}, {:.1} GB", bytes as f64 / 1e9));
    let got = sha256_file(&blob)?;
    let name = blob.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    let is_hash = name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit());
    ensure!(
        !is_hash || name == got,
        "{file}: expected sha256:{name}, as the hub names it, got sha256:{got}; remove {} and fetch it again",
        blob.display()
    );
    let verdict = if is_hash { "as the hub names it" } else { "to which the cache has none to compare" };
    Ok(format!("{file}: {bytes} bytes, sha256:{got}, {verdict}"))
}

/// Reads every tensor of a network: none is missing, superfluous or misshapen, and all are finite.
pub(super) fn check_network(release: Release, path: &Path, terminal: &Terminal) -> Result<String> {
    terminal.say(format!("reading the network {release}"));
    let weights = DdtFile::open(path)?.weights(Some(&NetworkConfig::preset(release.sizes())?))?;
    let _stepping = terminal.cancel().stepping();
    let mut numbers = 0;
    for (name, tensor) in &weights {
        check_finite(name, tensor, terminal)?;
        numbers += tensor.elem_count();
    }
    let (tensors, sizes) = (weights.len(), release.sizes());
    Ok(format!("network: {tensors} tensors and {numbers} numbers of {sizes}, all finite"))
}

/// What is fetched of a network's autoencoder: Stable Diffusion's, or decoder and statistics of an RAE.
pub(super) struct Autoencoder {
    files: Vec<(HubFile, PathBuf)>,
    opened: Vec<Checkpoint>,
    rae: Option<(RaeDecoderConfig, RaeStatistics)>,
}

impl Autoencoder {
    /// Opens the files; those of an RAE must be for the latents that the network generates.
    pub(super) fn open(release: Release, files: Vec<(HubFile, PathBuf)>) -> Result<Self> {
        // A file of an RAE cannot be told from another by its hash if the cache has none.
        let opened =
            files.iter().map(|(file, path)| Checkpoint::open(path).with_context(|| file.to_string()));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let rae = match (files.as_slice(), opened.as_slice()) {
            ([(name, _), (statistics_name, _)], [decoder, statistics]) => {
                let network = NetworkConfig::preset(release.sizes())?;
                let expected = (network.sizes.in_channels, network.grid_side.unwrap_or_default());
                let words = |(channels, side)| format!("{channels} channels and {side} x {side} positions");
                let check = |name: &HubFile, what: &str, got: (usize, usize)| {
                    ensure!(
                        got == expected,
                        "{name}: expected {what} of {}, which {release} generates, got {}; remove the file and run \
                         ddt fetch {release}",
                        words(expected),
                        words(got)
                    );
                    Ok(())
                };
                let cfg = RaeDecoderConfig::of(decoder, None).with_context(|| name.to_string())?;
                check(name, "a decoder for latents", (cfg.latent_channels, cfg.grid))?;
                let statistics = RaeStatistics::load(statistics, &Device::Cpu);
                let statistics = statistics.with_context(|| statistics_name.to_string())?;
                check(statistics_name, "statistics of latents", statistics.size())?;
                Some((cfg, statistics))
            }
            ([_], [_]) => None,
            _ => bail!("{release}: expected an autoencoder of one or two files, got {}", files.len()),
        };
        Ok(Self { files, opened, rae })
    }

    /// The files, with their places.
    pub(super) fn files(&self) -> &[(HubFile, PathBuf)] {
        &self.files
    }

    /// Reads every tensor: both halves of Stable Diffusion's, the decoder of an RAE.
    pub(super) fn read(&self, terminal: &Terminal) -> Result<String> {
        terminal.say("reading the autoencoder");
        let (dtype, device, _stepping) = (DType::F32, Device::Cpu, terminal.cancel().stepping());
        for (file, (name, _)) in self.opened.iter().zip(&self.files) {
            for tensor in file.names() {
                check_finite(tensor, &file.tensor(tensor, &device)?, terminal)
                    .with_context(|| name.to_string())?;
            }
        }
        let (file, name) = (&self.opened[0], || self.files[0].0.to_string());
        let parts = match &self.rae {
            Some((cfg, statistics)) => {
                RaeDecoder::load(cfg, file, Some(statistics.clone()), dtype, &device).with_context(name)?;
                "decoder and statistics"
            }
            None => {
                let cfg = KlConfig::sd_vae_ft_ema();
                KlEncoder::load(&cfg, file, dtype, &device).with_context(name)?;
                KlDecoder::load(&cfg, file, dtype, &device).with_context(name)?;
                "encoder and decoder"
            }
        };
        let tensors: usize = self.opened.iter().map(|it| it.names().len()).sum();
        Ok(format!("autoencoder: {tensors} tensors, {parts} are complete, all finite"))
    }
}

/// Checks that all elements are numbers, unless the user has stopped it.
fn check_finite(name: &str, tensor: &Tensor, terminal: &Terminal) -> Result<()> {
    if terminal.cancel().is_requested() {
        return Err(Interrupted.into());
    }
    ensure!(is_finite(tensor)?, "{name}: expected finite numbers, got NaN or infinity");
    Ok(())
}

/// Whether all elements are numbers: the sum of their squares is one then, in f64.
fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_that_is_no_number_is_found() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        assert!(is_finite(&tensor(&[f32::MAX, f32::MIN, 0.0])).unwrap());
        assert!(!is_finite(&tensor(&[1.0, f32::NAN, 0.0])).unwrap());
        assert!(!is_finite(&tensor(&[1.0, 0.0, f32::NEG_INFINITY])).unwrap());
    }
}
