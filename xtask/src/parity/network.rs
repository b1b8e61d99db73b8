//! One call of a network.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use ddt_model::{Ddt, DdtFile, ImprovedSit};

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

const FORWARD: Tolerance = Tolerance::RelativeRms(1e-5);

/// Velocity and self-condition of one call, and the velocity elsewhere under the same self-condition.
pub(crate) fn ddt_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = Ddt::new(&fixture.sizes()?, fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let z_t = network.encoder().forward(&x, &t, &y)?;
    let kept = network.decoder().modulations(&z_t)?;
    let velocity = network.decoder().forward(&x, &z_t)?;
    let mut found = vec![
        Comparison::tensors("out.velocity", &velocity, &fixture.tensor("out.velocity")?, FORWARD)?,
        Comparison::tensors("out.state", &z_t, &fixture.tensor("out.state")?, FORWARD)?,
    ];
    if fixture.has("out.velocity_shared") {
        let shared = network.decoder().forward_kept(&fixture.tensor("in.x2")?, &kept)?;
        let want = fixture.tensor("out.velocity_shared")?;
        found.push(Comparison::tensors("out.velocity_shared", &shared, &want, FORWARD)?);
    }
    Ok(found)
}

/// The decoder alone.
pub(crate) fn decoder_only_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = ImprovedSit::new(&fixture.sizes()?, fixture.builder("model.")?)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let velocity = network.forward(&x, &t, &y)?;
    Ok(vec![Comparison::tensors("out.velocity", &velocity, &fixture.tensor("out.velocity")?, FORWARD)?])
}

/// A checkpoint beside the fixture, loaded and called.
pub(crate) fn checkpoint_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let name = fixture.text("checkpoint")?;
    let path = fixture.path().parent().context("the fixture lies in no folder")?.join(name);
    let prefix = format!("{}.", fixture.text("weights")?);
    let file = DdtFile::open(&path)?;
    let network = file.load_under(&prefix, Some(&fixture.sizes()?), DType::F32, &Device::Cpu)?;
    let (x, t, y) = (fixture.tensor("in.x")?, fixture.tensor("in.t")?, fixture.labels("in.y")?);
    let velocity = network.forward(&x, &t, &y)?;
    Ok(vec![Comparison::tensors("out.velocity", &velocity, &fixture.tensor("out.velocity")?, FORWARD)?])
}
