//! Both halves of the representation autoencoder.

use anyhow::Result;
use candle_core::DType;
use ddt_adapters::{
    DinoV2Config, DinoV2Mlp, RaeDecoder, RaeDecoderConfig, RaeEncoder, RaeEncoderConfig, RaeStatistics,
};
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

/// The encoder's sizes as fixtures write them.
#[derive(Debug, Deserialize)]
struct EncoderSizes {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: usize,
    image_size: usize,
    patch_size: usize,
    num_register_tokens: usize,
    encoder_input_size: usize,
}

/// Preprocessed image, resampled positions, features and latent.
pub(crate) fn rae_encode(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let sizes: EncoderSizes = fixture.json("config")?;
    let dino = DinoV2Config {
        hidden_size: sizes.hidden_size,
        num_blocks: sizes.num_hidden_layers,
        num_heads: sizes.num_attention_heads,
        patch_size: sizes.patch_size,
        position_grid: sizes.image_size / sizes.patch_size.max(1),
        num_registers: sizes.num_register_tokens,
        mlp: DinoV2Mlp::Gelu,
        mlp_ratio: sizes.mlp_ratio,
    };
    let cfg = RaeEncoderConfig { dino, input_size: sizes.encoder_input_size, downscale: 16 };
    let weights = fixture.checkpoint().with_prefix("encoder.");
    let encoder = RaeEncoder::load(&cfg, &weights, statistics(fixture)?, DType::F32, fixture.device())?;
    let image = fixture.tensor("in.image")?;
    let normalised = encoder.preprocess(&image)?;
    let features = encoder.network().forward(&normalised)?;
    let positions = encoder.network().positions(features.grid)?;
    let all = [
        ("mid.normalised", normalised),
        ("mid.pos_embed", positions),
        ("mid.features", features.patch_tokens),
        ("out.latent", encoder.encode_raw(&image)?),
    ];
    all.iter().map(|(name, got)| fixture.compare(name, got, Tolerance::FEATURES)).collect()
}

/// The decoder's number of heads as fixtures write it; its tensors have the other sizes.
#[derive(Debug, Deserialize)]
struct DecoderSizes {
    decoder_num_attention_heads: usize,
}

/// Features and image of a latent.
pub(crate) fn rae_decode(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let sizes: DecoderSizes = fixture.json("config")?;
    let weights = fixture.checkpoint().with_prefix("decoder.");
    let cfg = RaeDecoderConfig::of(&weights, Some(sizes.decoder_num_attention_heads))?;
    let decoder = RaeDecoder::load(&cfg, &weights, statistics(fixture)?, DType::F32, fixture.device())?;
    let latent = fixture.tensor("in.latent")?;
    let features = decoder.features(&latent)?.flatten_from(2)?.transpose(1, 2)?;
    Ok(vec![
        fixture.compare("mid.features", &features, Tolerance::AUTOENCODER)?,
        fixture.compare("out.image", &decoder.decode_raw(&latent)?, Tolerance::AUTOENCODER)?,
    ])
}

/// The statistics, where the fixture has any.
fn statistics(fixture: &Fixture) -> Result<Option<RaeStatistics>> {
    if !fixture.has("in.stat.var") {
        return Ok(None);
    }
    Ok(Some(RaeStatistics::load(&fixture.checkpoint().with_prefix("in.stat."), fixture.device())?))
}
