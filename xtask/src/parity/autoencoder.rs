//! Autoencoders.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use ddt_adapters::{KlAutoencoder, KlConfig, TinyAutoencoder};
use ddt_files::Renamed;

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

const AUTOENCODER: Tolerance = Tolerance::RelativeRms(1e-4);

/// Posterior of an image and image of a latent, by Stable Diffusion's autoencoder.
pub(crate) fn vae_kl(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg: KlConfig = fixture.json("config")?;
    let vae = KlAutoencoder::load(&cfg, &fixture.checkpoint().with_prefix("model."), &Device::Cpu)?;
    let posterior = vae.posterior(&fixture.tensor("in.image")?)?;
    let decoded = vae.decode_raw(&fixture.tensor("in.latent")?)?;
    let compare =
        |name: &str, got: &Tensor| Comparison::tensors(name, got, &fixture.tensor(name)?, AUTOENCODER);
    Ok(vec![
        compare("out.mean", &posterior.mean)?,
        compare("out.logvar", &posterior.logvar)?,
        compare("out.decoded", &decoded)?,
    ])
}

/// Latent of a photo and photo of a latent, by a tiny autoencoder.
pub(crate) fn tae(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let weight = |name: &str| name.starts_with("encoder.") || name.starts_with("decoder.");
    let weights = Renamed::new(fixture.checkpoint(), |name| weight(name).then(|| name.to_owned()))?;
    let coder = TinyAutoencoder::load(&weights, &Device::Cpu)?;
    let photo = fixture.tensor("in.image")?.to_dtype(DType::F32)?; // (H, W, 3)
    let pixels = (photo / 255.0)?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?;
    let want = fixture.tensor("out.latent")?;
    let latent = coder.encoder.encode_raw(&pixels)?;
    let decoded = coder.decoder.decode_raw(&want)?;
    Ok(vec![
        Comparison::tensors("out.latent", &latent, &want, AUTOENCODER)?,
        Comparison::tensors("out.decoded", &decoded, &fixture.tensor("out.decoded")?, AUTOENCODER)?,
    ])
}
