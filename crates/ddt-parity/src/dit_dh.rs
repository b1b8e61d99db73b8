//! DiT^DH: one call and sampling runs, in its own time, where 1 is noise.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use ddt_flow::{EULER, Guidance, TimeGrid};
use ddt_model::{
    DdtConfig, DitDhConfig, Family, NetworkConfig, SampleOptions, VelocityNetwork, sample, sample_autoguided,
};
use ddt_sharing::SharingPlan;
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

/// A network as its published configuration writes it; pairs are encoder, decoder.
#[derive(Debug, Deserialize)]
struct Published {
    input_size: usize,
    patch_size: serde_json::Value,
    in_channels: usize,
    hidden_size: (usize, usize),
    depth: (usize, usize),
    num_heads: (usize, usize),
    mlp_ratio: f64,
    class_dropout_prob: f64,
    num_classes: usize,
    use_qknorm: bool,
    use_swiglu: bool,
    use_rope: bool,
    use_rmsnorm: bool,
    wo_shift: bool,
    use_pos_embed: bool,
}

/// The configuration under a metadata key.
pub(crate) fn config(fixture: &Fixture, key: &str) -> Result<NetworkConfig> {
    let it: Published = fixture.json(key)?;
    if !it.use_swiglu || !it.use_rope || !it.use_rmsnorm || it.wo_shift {
        bail!(
            "expected use_swiglu, use_rope and use_rmsnorm without wo_shift, as all published networks have them"
        );
    }
    ensure!(it.patch_size == 1 || it.patch_size == serde_json::json!([1, 1]), "expected patches of 1");
    let sizes = DdtConfig {
        in_channels: it.in_channels,
        patch_size: 1,
        hidden_size: it.hidden_size.0,
        num_heads: it.num_heads.0,
        num_encoder_blocks: it.depth.0,
        num_decoder_blocks: it.depth.1,
        num_classes: it.num_classes,
    };
    let dit_dh = DitDhConfig {
        decoder_hidden_size: it.hidden_size.1,
        decoder_num_heads: it.num_heads.1,
        mlp_ratio: it.mlp_ratio,
        qk_norm: it.use_qknorm,
        positions: it.use_pos_embed,
        null_class: it.class_dropout_prob > 0.0,
    };
    let (family, dit_dh, grid_side) = (Family::DitDh, Some(dit_dh), Some(it.input_size));
    Ok(NetworkConfig { family, dit_dh, grid_side, ..sizes.into() })
}

/// The network under a prefix in the form that sampling uses; its rotary tables must be those of the fixture.
fn network(
    fixture: &Fixture,
    key: &str,
    prefix: &str,
) -> Result<(Box<dyn VelocityNetwork>, Vec<Comparison>)> {
    let cfg = config(fixture, key)?;
    let compare = |(name, computed): (String, Tensor)| {
        fixture.compare(&format!("{prefix}{name}"), &computed, Tolerance::FORWARD)
    };
    let tables = cfg.fixed_tensors()?.into_iter().map(compare).collect::<Result<_>>()?;
    let vb = fixture.builder(prefix)?;
    let network = if fixture.freezes() { cfg.build_frozen(vb)? } else { cfg.build(vb)? };
    Ok((network, tables))
}

/// The same time in this project's direction.
pub(crate) fn reversed(t: &Tensor) -> Result<Tensor> {
    Ok(t.affine(-1.0, 1.0)?)
}

/// Velocity and state of one call, and the velocity elsewhere under the same state.
pub(crate) fn ditdh_forward(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let (network, mut all) = network(fixture, "config", "model.")?;
    let halves = network.decoupled().context("a DiT^DH has two halves")?;
    let (x, labels) = (fixture.tensor("in.x")?, fixture.labels("in.y")?);
    let t = reversed(&fixture.tensor("in.t")?)?;
    let s = halves.encode(&x, &t, &labels)?;
    let shared = halves.decode(&fixture.tensor("in.x2")?, &halves.modulations(&s)?)?;
    for (name, got) in [
        ("out.velocity", network.forward(&x, &t, &labels)?.neg()?),
        ("mid.s", s),
        ("out.velocity_shared", shared.neg()?),
    ] {
        all.push(fixture.compare(name, &got, Tolerance::FORWARD)?);
    }
    Ok(all)
}

/// A sampling run as fixtures write it.
#[derive(Debug, Deserialize)]
struct Run {
    method: String,
    scale: f64,
    interval: (f64, f64),
    num_steps: usize,
    time_dist_shift_dim: f64,
    time_dist_shift_base: f64,
    recompute: Option<Vec<usize>>,
    refresh: Option<usize>,
}

/// The shift of times of published configurations, never below 1.
pub(crate) fn timeshift(dim: f64, base: f64) -> f64 {
    (dim / base).sqrt().max(1.0)
}

impl Run {
    /// 49 steps until 0.999 in the published sampler, whose grid of 50 points leaves data out.
    fn grid(&self) -> Result<TimeGrid> {
        let steps = self.num_steps.checked_sub(1).context("expected two points of a grid or more")?;
        Ok(TimeGrid::until(steps, 0.999, timeshift(self.time_dist_shift_dim, self.time_dist_shift_base))?)
    }

    /// The interval is closed, in the network's time, and scales up to 1 guide nothing.
    fn guidance(&self) -> Result<Guidance> {
        let (low, high) = self.interval;
        Ok(match self.scale {
            scale if scale > 1.0 => Guidance::new(scale, (1.0 - high, 1.0 - low))?.closed(),
            _ => Guidance::none(),
        })
    }

    fn plan(&self, steps: usize) -> Result<Option<SharingPlan>> {
        Ok(match (&self.recompute, self.refresh) {
            (Some(recompute), _) => Some(SharingPlan::new(recompute.clone(), steps)?),
            (None, Some(every)) => Some(SharingPlan::uniform(steps, every)?),
            (None, None) => None,
        })
    }
}

/// The times of each entry of `cases`, and its final latent.
pub(crate) fn ditdh_sample(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let (network, mut all) = network(fixture, "config", "model.")?;
    let noise = fixture.tensor("in.noise")?;
    let labels: Vec<u32> = fixture.labels("in.labels")?.to_vec1()?;
    let runs: Vec<Run> = fixture.json("cases")?;
    for (i, run) in runs.iter().enumerate() {
        let grid = run.grid()?;
        let times: Vec<f32> = grid.times().iter().map(|t| (1.0 - t) as f32).collect();
        let times = Tensor::new(times, &Device::Cpu)?;
        all.push(fixture.compare(&format!("mid.t.{i}"), &times, Tolerance::FORWARD)?);
        let (guidance, plan) = (run.guidance()?, run.plan(grid.num_steps())?);
        let options = SampleOptions { grid, solver: &EULER, guidance, plan: plan.as_ref() };
        let on_step = &mut |_: &ddt_flow::StepReport<'_>| ControlFlow::Continue(());
        let sampled = match run.method.as_str() {
            "cfg" => sample(&*network, &noise, &labels, &options, on_step),
            "autoguidance" => {
                let (guide, tables) = self::network(fixture, "guide_config", "guide.")?;
                all.extend(tables);
                sample_autoguided(&*network, &*guide, &noise, &labels, &options, on_step)
            }
            other => bail!("case {i}: expected method cfg or autoguidance, got {other:?}"),
        };
        let sampled = sampled.with_context(|| format!("case {i}"))?;
        all.push(fixture.compare(&format!("out.{i}"), &sampled.latents, Tolerance::SAMPLE)?);
    }
    Ok(all)
}
