//! DINOv2.

use anyhow::Result;
use candle_core::Device;
use ddt_adapters::{DinoV2, DinoV2Config, DinoV2Mlp};
use serde::Deserialize;

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

const DINOV2: Tolerance = Tolerance::RelativeRms(1e-4);

/// Sizes as fixtures write them.
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
    };
    let dino = DinoV2::load(&cfg, &fixture.checkpoint().with_prefix("model."), &Device::Cpu)?;
    let resized = dino.preprocess(&fixture.tensor("in.image")?)?;
    let features = dino.forward(&resized)?;
    let mut all = vec![Comparison::tensors(
        "out.features",
        &features.patch_tokens,
        &fixture.tensor("out.features")?,
        DINOV2,
    )?];
    if fixture.has("mid.resized") {
        all.push(Comparison::tensors("mid.resized", &resized, &fixture.tensor("mid.resized")?, DINOV2)?);
    }
    if fixture.has("mid.pos_embed") {
        let positions = dino.positions(features.grid)?;
        all.push(Comparison::tensors(
            "mid.pos_embed",
            &positions,
            &fixture.tensor("mid.pos_embed")?,
            DINOV2,
        )?);
    }
    Ok(all)
}
