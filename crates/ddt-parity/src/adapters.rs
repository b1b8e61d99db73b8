//! Autoencoders, DINOv2 and Inception.

use anyhow::Result;
use candle_core::DType;
use ddt_adapters::{
    DinoV2, DinoV2Config, DinoV2Mlp, Inception, InceptionFeatures, KlAutoencoder, KlConfig, TinyAutoencoder,
    inception::FoldedInception,
};
use ddt_files::Renamed;
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

/// Posterior of an image and image of a latent, by Stable Diffusion's autoencoder.
pub(crate) fn vae_kl(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg: KlConfig = fixture.json("config")?;
    let vae =
        KlAutoencoder::load(&cfg, &fixture.checkpoint().with_prefix("model."), DType::F32, fixture.device())?;
    let posterior = vae.encoder.posterior(&fixture.tensor("in.image")?)?;
    let decoded = vae.decoder.decode_raw(&fixture.tensor("in.latent")?)?;
    Ok(vec![
        fixture.compare("out.mean", &posterior.mean, Tolerance::AUTOENCODER)?,
        fixture.compare("out.logvar", &posterior.logvar, Tolerance::AUTOENCODER)?,
        fixture.compare("out.decoded", &decoded, Tolerance::AUTOENCODER)?,
    ])
}

/// Latent of a photo and photo of a latent, by a tiny autoencoder.
pub(crate) fn tae(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let is_weight = |name: &str| name.starts_with("encoder.") || name.starts_with("decoder.");
    let weights = Renamed::new(fixture.checkpoint(), |name| is_weight(name).then(|| name.to_owned()))?;
    let coder = TinyAutoencoder::load(&weights, DType::F32, fixture.device())?;
    let photo = fixture.tensor("in.image")?.to_dtype(DType::F32)?; // (H, W, 3)
    let pixels = (photo / 255.0)?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?;
    let latent = coder.encoder.encode_raw(&pixels)?;
    let decoded = coder.decoder.decode_raw(&fixture.tensor("out.latent")?)?;
    Ok(vec![
        fixture.compare("out.latent", &latent, Tolerance::AUTOENCODER)?,
        fixture.compare("out.decoded", &decoded, Tolerance::AUTOENCODER)?,
    ])
}

/// DINOv2's sizes as fixtures write them.
#[derive(Debug, Deserialize)]
struct Sizes {
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
    pos_grid: usize,
    patch_size: usize,
}

/// Preprocessing, resampled positions and patch tokens.
pub(crate) fn dinov2(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let sizes: Sizes = fixture.json("config")?;
    let registers = fixture.checkpoint().info("model.register_tokens");
    let swiglu = fixture.has("model.blocks.0.mlp.w12.weight");
    let cfg = DinoV2Config {
        hidden_size: sizes.embed_dim,
        num_blocks: sizes.depth,
        num_heads: sizes.num_heads,
        patch_size: sizes.patch_size,
        position_grid: sizes.pos_grid,
        num_registers: registers.and_then(|it| it.shape.get(1).copied()).unwrap_or(0),
        mlp: if swiglu { DinoV2Mlp::SwiGlu } else { DinoV2Mlp::Gelu },
        mlp_ratio: 4,
    };
    let dino = DinoV2::load(&cfg, &fixture.checkpoint().with_prefix("model."), DType::F32, fixture.device())?;
    let resized = dino.preprocess(&fixture.tensor("in.image")?)?;
    let features = dino.forward(&resized)?;
    let mut all = vec![fixture.compare("out.features", &features.patch_tokens, Tolerance::FEATURES)?];
    if fixture.has("mid.resized") {
        all.push(fixture.compare("mid.resized", &resized, Tolerance::FEATURES)?);
    }
    if fixture.has("mid.pos_embed") {
        let positions = dino.positions(features.grid)?;
        all.push(fixture.compare("mid.pos_embed", &positions, Tolerance::FEATURES)?);
    }
    Ok(all)
}

/// Features and logits of images, on weights that follow from their names.
pub(crate) fn inception(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let inception = Inception::from_folded(&FoldedInception::synthetic(fixture.device())?)?;
    compare_features(fixture, &inception.forward(&fixture.tensor("in.image_u8")?)?)
}

/// Inception's features against those of a fixture of kind `inception`.
pub(crate) fn compare_features(fixture: &Fixture, got: &InceptionFeatures) -> Result<Vec<Comparison>> {
    Ok(vec![
        fixture.compare("out.pool3", &got.pool, Tolerance::FEATURES)?,
        fixture.compare("out.spatial7", &got.spatial, Tolerance::FEATURES)?,
        fixture.compare("out.logits_unbiased", &got.logits_unbiased, Tolerance::FEATURES)?,
        fixture.compare("out.logits", &got.logits, Tolerance::FEATURES)?,
    ])
}
