//! Networks: one call, and whole sampling runs.

use std::{collections::HashMap, ops::ControlFlow};

use anyhow::{Context, Result, bail};
use candle_core::{Module, Tensor};
use candle_nn::VarBuilder;
use ddt_flow::{Guidance, TimeGrid, solver_by_name};
use ddt_model::{
    DdtConfig, DdtFile, DecoupledNetwork, Family, NetworkConfig, NoisyInput, Projection, SampleOptions,
    VelocityNetwork, sample,
};
use ddt_sharing::{ForecastOrder, SharingPlan};
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

/// A network's sizes as fixtures write them; keys of other families are ignored.
#[derive(Debug, Deserialize)]
struct Sizes {
    in_channels: usize,
    patch_size: usize,
    hidden_size: usize,
    num_groups: usize,
    num_blocks: usize,
    #[serde(default)]
    num_encoder_blocks: usize,
    num_classes: usize,
}

impl Fixture {
    /// The network's sizes.
    ///
    /// # Errors
    /// Metadata without them.
    pub fn sizes(&self) -> Result<DdtConfig> {
        let it: Sizes = self.json("config")?;
        let decoder = it.num_blocks.checked_sub(it.num_encoder_blocks);
        let num_decoder_blocks = decoder.context("config has more encoder blocks than blocks")?;
        Ok(DdtConfig {
            in_channels: it.in_channels,
            patch_size: it.patch_size,
            hidden_size: it.hidden_size,
            num_heads: it.num_groups,
            num_encoder_blocks: it.num_encoder_blocks,
            num_decoder_blocks,
            num_classes: it.num_classes,
        })
    }

    /// The tensors under a prefix, named without it, in the fixture's dtype.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn builder(&self, prefix: &str) -> Result<VarBuilder<'static>> {
        let names = self.checkpoint().names().into_iter();
        let named = names.filter_map(|full| Some((full, full.strip_prefix(prefix)?)));
        let weights = named.map(|(full, name)| Ok((name.to_owned(), self.tensor(full)?)));
        let weights = weights.collect::<Result<HashMap<String, Tensor>>>()?;
        Ok(VarBuilder::from_tensors(weights, self.dtype(), self.device()))
    }

    /// Noisy latents, times and labels of one call.
    fn call(&self) -> Result<(Tensor, Tensor, Tensor)> {
        Ok((self.tensor("in.x")?, self.tensor("in.t")?, self.labels("in.y")?))
    }
}

/// The network of a fixture, in the form that sampling uses.
fn network(fixture: &Fixture, cfg: &NetworkConfig) -> Result<Box<dyn VelocityNetwork>> {
    let vb = fixture.builder("model.")?;
    Ok(if fixture.freezes() { cfg.build_frozen(vb)? } else { cfg.build(vb)? })
}

/// Velocity and self-condition of one call, and the velocity elsewhere under the same self-condition.
pub(crate) fn ddt_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = network(fixture, &fixture.sizes()?.into())?;
    compare_halves(fixture, network.decoupled().context("a DDT has two halves")?)
}

/// The outputs of a fixture of kind `ddt_forward` against those of `network`.
///
/// # Errors
/// Outputs of another shape.
pub fn compare_halves(fixture: &Fixture, network: &dyn DecoupledNetwork) -> Result<Vec<Comparison>> {
    let (x, t, y) = fixture.call()?;
    let z_t = network.encode(&x, &t, &y)?;
    let cached = network.modulations(&z_t)?;
    let velocity = network.forward(&x, &t, &y)?;
    let mut all = vec![
        fixture.compare("out.velocity", &velocity, Tolerance::FORWARD)?,
        fixture.compare("out.state", &z_t, Tolerance::FORWARD)?,
    ];
    if fixture.has("out.velocity_shared") {
        let shared = network.decode(&fixture.tensor("in.x2")?, &cached)?;
        all.push(fixture.compare("out.velocity_shared", &shared, Tolerance::FORWARD)?);
    }
    Ok(all)
}

/// DDT's blocks without the split.
pub(crate) fn decoder_only_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg = NetworkConfig { family: Family::ImprovedSit, ..fixture.sizes()?.into() };
    let network = network(fixture, &cfg)?;
    let (x, t, y) = fixture.call()?;
    Ok(vec![fixture.compare("out.velocity", &network.forward(&x, &t, &y)?, Tolerance::FORWARD)?])
}

/// Settings of fixtures of SiT's kinds beside the common sizes.
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

/// The positions that the network computes, where a file has none, against those stored in the fixture.
fn positions(fixture: &Fixture, cfg: &NetworkConfig) -> Result<Comparison> {
    let computed = cfg.fixed_tensors()?;
    let computed = computed.get("pos_embed").context("the network has no positions")?;
    fixture.compare("model.pos_embed", computed, Tolerance::FORWARD)
}

/// SiT: the velocity, which is the first half of the channels it returns.
pub(crate) fn sit_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg = sit_config(fixture, Family::Sit)?;
    let network = network(fixture, &cfg)?;
    let (x, t, y) = fixture.call()?;
    let velocity = network.forward(&x, &t, &y)?;
    let want = fixture.tensor("out.velocity")?.narrow(1, 0, velocity.dim(1)?)?;
    let velocity = Comparison::tensors("out.velocity", &velocity, &want, Tolerance::FORWARD)?;
    Ok(vec![velocity, positions(fixture, &cfg)?])
}

/// REPA, in its own time direction, and its projection.
pub(crate) fn repa_sit_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cfg = sit_config(fixture, Family::Repa)?;
    let network = network(fixture, &cfg)?;
    let (x, t, y) = fixture.call()?;
    let align_layer = cfg.projection.context("the fixture has no projection")?.align_layer;
    let head = network.projection_head().context("the network has no projection")?;
    // The network runs in this project's direction: t = 1 is data.
    let input = NoisyInput { x_t: &x, t: &t.affine(-1.0, 1.0)?, labels: &y };
    let (velocity, features) = network.forward_with_features(input, align_layer)?;
    let projection = head.forward(&features)?;
    Ok(vec![
        fixture.compare("out.velocity", &velocity.neg()?, Tolerance::FORWARD)?,
        fixture.compare("out.projection", &projection, Tolerance::FORWARD)?,
        positions(fixture, &cfg)?,
    ])
}

/// A checkpoint beside the fixture, loaded and called.
pub(crate) fn checkpoint_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let prefix = format!("{}.", fixture.text("weights")?);
    let file = DdtFile::open(fixture.beside("checkpoint")?)?.with_prefix(&prefix);
    let network = file.load_network(Some(&fixture.sizes()?.into()), fixture.dtype(), fixture.device())?;
    let (x, t, y) = fixture.call()?;
    Ok(vec![fixture.compare("out.velocity", &network.forward(&x, &t, &y)?, Tolerance::FORWARD)?])
}

/// A sampling run as fixtures write it.
#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    method: String,
    #[serde(default)]
    order: usize,
    pub(crate) steps: usize,
    pub(crate) guidance: f64,
    pub(crate) interval: (f64, f64),
    pub(crate) timeshift: f64,
    pub(crate) last_step: f64,
    recompute: Option<Vec<usize>>,
    refresh: Option<usize>,
    #[serde(default)]
    forecast: ForecastOrder,
}

impl Run {
    pub(crate) fn solver_name(&self) -> Result<String> {
        match self.method.as_str() {
            "euler" => Ok("euler".to_owned()),
            "adams" => Ok(format!("adams{}", self.order)),
            other => bail!("expected method euler or adams, got {other:?}"),
        }
    }

    pub(crate) fn plan(&self) -> Result<Option<SharingPlan>> {
        let plan = match (&self.recompute, self.refresh) {
            (Some(steps), _) => SharingPlan::new(steps.clone(), self.steps)?,
            (None, Some(every)) => SharingPlan::uniform(self.steps, every)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(plan.with_order(self.forecast)))
    }
}

/// One final latent for each entry of `cases`.
pub(crate) fn ddt_sample(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let network = network(fixture, &fixture.sizes()?.into())?;
    let noise = fixture.tensor("in.noise")?;
    let labels: Vec<u32> = fixture.labels("in.labels")?.to_vec1()?;
    let runs: Vec<Run> = fixture.json("cases")?;
    let compare = |(i, run): (usize, &Run)| -> Result<Comparison> {
        let solver = solver_by_name(&run.solver_name()?)?;
        let plan = run.plan()?;
        let options = SampleOptions {
            grid: TimeGrid::new(run.steps, Some(run.last_step), run.timeshift)?,
            solver: solver.as_ref(),
            guidance: Guidance::new(run.guidance, run.interval)?,
            plan: plan.as_ref(),
        };
        let sampled = sample(&*network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
        fixture.compare(&format!("out.{i}"), &sampled.latents, Tolerance::SAMPLE)
    };
    runs.iter().enumerate().map(|run| compare(run).with_context(|| format!("case {}", run.0))).collect()
}
