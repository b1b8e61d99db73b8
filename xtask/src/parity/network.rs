//! One call of a network.

use anyhow::{Context, Result};
use candle_core::Device;
use ddt_model::{Ddt, DdtFile, DecoderOnly, Family, NetworkConfig, Projection, VelocityNetwork};
use serde::Deserialize;

use super::{compare::Comparison, fixture::Fixture};

/// Relative RMS of one call.
const FORWARD: f64 = 1e-5;

/// Velocity and self-condition of one call, and the velocity elsewhere under the same self-condition.
pub(crate) fn ddt_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = Ddt::new(&fixture.sizes()?, fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let z_t = network.encoder().forward(&x, &t, &y)?;
    let kept = network.decoder().modulations(&z_t)?;
    let velocity = network.decoder().forward(&x, &z_t)?;
    let mut found = vec![
        Comparison::tensors(
            "out.velocity",
            &velocity,
            &fixture.tensor("out.velocity")?,
            fixture.tolerance(FORWARD),
        )?,
        Comparison::tensors("out.state", &z_t, &fixture.tensor("out.state")?, fixture.tolerance(FORWARD))?,
    ];
    if fixture.has("out.velocity_shared") {
        let shared = network.decoder().forward_cached(&fixture.tensor("in.x2")?, &kept)?;
        let want = fixture.tensor("out.velocity_shared")?;
        found.push(Comparison::tensors("out.velocity_shared", &shared, &want, fixture.tolerance(FORWARD))?);
    }
    Ok(found)
}

/// DDT's blocks without the split.
pub(crate) fn decoder_only_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg = NetworkConfig { family: Family::ImprovedSit, ..fixture.sizes()?.into() };
    let network = cfg.build(fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let velocity = network.forward(&x, &t, &y)?;
    Ok(vec![Comparison::tensors(
        "out.velocity",
        &velocity,
        &fixture.tensor("out.velocity")?,
        fixture.tolerance(FORWARD),
    )?])
}

/// What fixtures of SiT's kind say beside their sizes.
#[derive(Debug, Deserialize)]
struct SitConfig {
    input_size: usize,
    patch_size: usize,
    align_layer: Option<usize>,
    projector_dim: Option<usize>,
    feature_dim: Option<usize>,
}

fn sit_config(fixture: &Fixture, family: Family) -> Result<NetworkConfig> {
    let it: SitConfig = fixture.json("config")?;
    let projection = match (it.align_layer, it.projector_dim, it.feature_dim) {
        (Some(align_layer), Some(hidden_size), Some(feature_size)) => {
            Some(Projection { align_layer, hidden_size, feature_size })
        }
        _ => None,
    };
    let grid_side = it.input_size.checked_div(it.patch_size);
    Ok(NetworkConfig { family, grid_side, projection, ..fixture.sizes()?.into() })
}

/// SiT: the velocity alone, of the channels it returns.
pub(crate) fn sit_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = sit_config(fixture, Family::Sit)?.build(fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let velocity = network.forward(&x, &t, &y)?;
    let want = fixture.tensor("out.velocity")?.narrow(1, 0, velocity.dim(1)?)?;
    Ok(vec![Comparison::tensors("out.velocity", &velocity, &want, fixture.tolerance(FORWARD))?])
}

/// REPA, in its own time direction, and its projection.
pub(crate) fn repa_sit_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg = sit_config(fixture, Family::Repa)?;
    let network = DecoderOnly::new(&cfg, fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let head = cfg.projection.context("the fixture has no projection")?;
    // The network runs in this project's direction: t = 1 is data.
    let (velocity, features) =
        network.forward_with_features(&x, &t.affine(-1.0, 1.0)?, &y, head.align_layer)?;
    let projection = network.project(&features)?.context("the network has no projection")?;
    Ok(vec![
        Comparison::tensors(
            "out.velocity",
            &velocity.neg()?,
            &fixture.tensor("out.velocity")?,
            fixture.tolerance(FORWARD),
        )?,
        Comparison::tensors(
            "out.projection",
            &projection,
            &fixture.tensor("out.projection")?,
            fixture.tolerance(FORWARD),
        )?,
    ])
}

/// A checkpoint beside the fixture, loaded and called.
pub(crate) fn checkpoint_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let name = fixture.text("checkpoint")?;
    let path = fixture.path().parent().context("the fixture lies in no folder")?.join(name);
    let prefix = format!("{}.", fixture.text("weights")?);
    let file = DdtFile::open(&path)?;
    let network = file.load_under(&prefix, Some(&fixture.sizes()?), fixture.dtype(), &Device::Cpu)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let velocity = network.forward(&x, &t, &y)?;
    Ok(vec![Comparison::tensors(
        "out.velocity",
        &velocity,
        &fixture.tensor("out.velocity")?,
        fixture.tolerance(FORWARD),
    )?])
}
