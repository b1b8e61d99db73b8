//! `ddt verify`: the published files in the hub's local cache, checked tensor by tensor.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt::{
    adapters::{KlConfig, KlDecoder, KlEncoder},
    files::{Checkpoint, sha256_file},
    hub::{Hub, HubFile, Release},
    model::{DdtConfig, DdtFile},
};

use crate::terminal::{Interrupted, Terminal};

const EXAMPLES: &str = "\
Examples:
  ddt fetch ddt-xl2-256
  ddt verify --preset ddt-xl2-256";

/// Checks the published files of a network in the hub's local cache: their hashes, and every tensor of the network and
/// its autoencoder.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The published network: ddt-xl2-256 or ddt-xl2-512
    #[arg(long, value_name = "NAME")]
    preset: Release,
    /// Threads to compute with; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    threads: u32,
}

pub(crate) fn run(args: &Args, terminal: &Terminal) -> Result<String> {
    ddt::start(args.threads as usize).context("--threads")?;
    let (release, hub) = (args.preset, Hub::from_env());
    let find = |file: HubFile| match hub.find(&file) {
        Some(path) => Ok((file, path)),
        None => bail!(
            "{file} is not in the hub's cache {}; fetch it with: ddt fetch {release}",
            hub.cache.display()
        ),
    };
    // Both are known to be there before minutes go into the first.
    let (network, autoencoder) = (find(release.network())?, find(release.autoencoder())?);
    let lines = [
        check_hash(&network.0, &network.1, terminal)?,
        check_hash(&autoencoder.0, &autoencoder.1, terminal)?,
        check_network(release, &network.1, terminal)?,
        check_autoencoder(&autoencoder.1, terminal)?,
    ];
    Ok(lines.join("\n"))
}

/// Compares a file with the hash that is its name in the cache.
fn check_hash(file: &HubFile, path: &Path, terminal: &Terminal) -> Result<String> {
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

/// Reads every tensor of the network: none is missing, superfluous or misshapen, and all are finite.
fn check_network(release: Release, path: &Path, terminal: &Terminal) -> Result<String> {
    terminal.say("reading the network");
    let weights = DdtFile::open(path)?.weights(Some(&DdtConfig::preset(release.sizes())?))?;
    let _stepping = terminal.cancel().stepping();
    let mut parameters = 0;
    for (name, tensor) in &weights {
        if terminal.cancel().is_requested() {
            return Err(Interrupted.into());
        }
        ensure!(is_finite(tensor)?, "{name}: expected finite numbers, got NaN or infinity");
        parameters += tensor.elem_count();
    }
    let (tensors, sizes) = (weights.len(), release.sizes());
    Ok(format!("network: {tensors} tensors and {parameters} parameters of {sizes}, all finite"))
}

/// Reads both halves of the autoencoder.
fn check_autoencoder(path: &Path, terminal: &Terminal) -> Result<String> {
    terminal.say("reading the autoencoder");
    let (file, cfg) = (Checkpoint::open(path)?, KlConfig::sd_vae_ft_ema());
    KlEncoder::load(&cfg, &file, DType::F32, &Device::Cpu)?;
    KlDecoder::load(&cfg, &file, DType::F32, &Device::Cpu)?;
    Ok(format!("autoencoder: {} tensors, encoder and decoder are complete", file.names().len()))
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
