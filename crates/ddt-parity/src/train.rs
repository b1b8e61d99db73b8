//! A training step: loss and gradients, the optimiser and the average of weights.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use ddt_flow::{LinearPath, logit_normal_time};
use ddt_model::NetworkConfig;
use ddt_train::{
    AdamWConfig, AlignmentConfig, Features, FlowConfig, FlowMatching, Moments, NoisyBatch, Parameters,
    adamw_step, average_step,
};

use crate::{
    Comparison, Fixture, Tolerance,
    dit_dh::{config, reversed, timeshift},
};

/// Parameters and their averages after some steps on given gradients.
pub(crate) fn adamw_ema(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let (beta1, beta2): (f64, f64) = fixture.json("betas")?;
    let (eps, weight_decay) = (fixture.json("eps")?, fixture.json("weight_decay")?);
    let cfg = AdamWConfig { beta1, beta2, eps, weight_decay };
    let (lr, decay): (f64, f64) = (fixture.json("lr")?, fixture.json("ema_decay")?);
    let steps: u64 = fixture.json("steps")?;
    let mut all = Vec::new();
    for i in (0..).take_while(|i| fixture.has(&format!("in.param.{i}"))) {
        let start = fixture.tensor(&format!("in.param.{i}"))?;
        let mut param: Vec<f32> = start.flatten_all()?.to_vec1()?;
        let (mut average, mut moments) = (param.clone(), Moments::zeros(param.len()));
        for step in 0..steps {
            let gradient: Vec<f32> =
                fixture.tensor(&format!("in.grad.{step}.{i}"))?.flatten_all()?.to_vec1()?;
            ensure!(gradient.len() == param.len(), "in.grad.{step}.{i} does not fit in.param.{i}");
            adamw_step(&mut param, &gradient, &mut moments, &cfg, lr, step + 1);
            average_step(&mut average, &param, decay);
        }
        for (name, values) in [("param", param), ("ema", average)] {
            let got = Tensor::from_vec(values, start.shape(), start.device())?;
            all.push(fixture.compare(&format!("out.{name}.{i}"), &got, Tolerance::OPTIMISER)?);
        }
    }
    Ok(all)
}

/// The loss with alignment, its parts, and the gradient of every parameter.
pub(crate) fn repa_step(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let tokens = fixture.tensor("in.dino")?;
    let alignment = AlignmentConfig {
        layer: fixture.json("align_layer")?,
        feature_dim: tokens.dim(2)?,
        weight: fixture.json("feature_weight")?,
    };
    let cfg = FlowConfig { alignment: Some(alignment), ..FlowConfig::PAPER };
    let network = NetworkConfig::from(fixture.sizes()?);
    let stored = |name: &str| match name.strip_prefix(FlowMatching::HEAD_PREFIX) {
        Some(rest) => format!("proj{rest}"),
        None => format!("model.{name}"),
    };
    let (objective, parameters) = objective(fixture, &network, cfg, stored)?;
    let noisy = noisy(fixture, logit_normal_time)?;
    let loss = objective.noisy_loss(&noisy, Some(&Features { tokens, grid: fixture.json("dino_grid")? }))?;
    let mut all = vec![
        fixture.compare("in.t", &noisy.t, Tolerance::LOSS)?,
        fixture.compare("out.loss", &loss.total, Tolerance::LOSS)?,
    ];
    let [flow, aligned] = loss.parts.as_slice() else { bail!("expected two parts of the loss") };
    for (name, part) in [("out.fm_loss", flow), ("out.cos_loss", aligned)] {
        all.push(fixture.compare(name, &part.1, Tolerance::LOSS)?);
    }
    all.extend(gradients(fixture, &parameters, &loss.total, stored)?);
    Ok(all)
}

/// The time, velocity and loss of a step of DiT^DH, and the gradient of every parameter.
pub(crate) fn ditdh_train(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let (dim, base) = (fixture.json("time_dist_shift_dim")?, fixture.json("time_dist_shift_base")?);
    let flow = FlowConfig { timeshift: timeshift(dim, base), min_time: 0.001, ..FlowConfig::PAPER };
    let stored = |name: &str| format!("model.{name}");
    let (objective, parameters) = objective(fixture, &config(fixture, "config")?, flow, stored)?;
    // In the opposite time, the opposite number.
    let noisy = noisy(fixture, |normal| flow.respaced(logit_normal_time(-normal)))?;
    let loss = objective.noisy_loss(&noisy, None)?.total;
    let velocity = objective.network().forward(&noisy.x_t, &noisy.t, &noisy.labels)?;
    let mut all = vec![
        fixture.compare("in.t", &reversed(&noisy.t)?, Tolerance::LOSS)?,
        fixture.compare("out.velocity", &velocity.neg()?, Tolerance::FORWARD)?,
        fixture.compare("out.loss", &loss, Tolerance::LOSS)?,
    ];
    all.extend(gradients(fixture, &parameters, &loss, stored)?);
    Ok(all)
}

/// The objective with the fixture's weights; `stored` names them there.
fn objective(
    fixture: &Fixture,
    network: &NetworkConfig,
    cfg: FlowConfig,
    stored: impl Fn(&str) -> String,
) -> Result<(FlowMatching, Parameters)> {
    let (objective, parameters) =
        Parameters::create(0, DType::F32, &Device::Cpu, |vb| FlowMatching::new(network, cfg, vb))?;
    for (name, var) in parameters.iter() {
        var.set(&fixture.tensor(&stored(name))?)?;
    }
    Ok((objective, parameters))
}

/// The batch with its noise, at the times that `time` makes of standard normal numbers.
fn noisy(fixture: &Fixture, time: impl Fn(f64) -> f64) -> Result<NoisyBatch> {
    let normals: Vec<f32> = fixture.tensor("in.lognorm_normal")?.to_vec1()?;
    let t: Vec<f32> = normals.iter().map(|it| time(f64::from(*it)) as f32).collect();
    let t = Tensor::new(t, &Device::Cpu)?;
    let (x, noise) = (fixture.tensor("in.x")?, fixture.tensor("in.noise")?);
    Ok(NoisyBatch {
        x_t: LinearPath.interpolate(&x, &noise, &t)?,
        target: LinearPath.velocity_target(&x, &noise)?,
        labels: fixture.labels("in.y")?,
        t,
    })
}

/// The gradient of every parameter.
fn gradients(
    fixture: &Fixture,
    parameters: &Parameters,
    loss: &Tensor,
    stored: impl Fn(&str) -> String,
) -> Result<Vec<Comparison>> {
    let gradients = loss.backward()?;
    let compare = |(name, var): (&str, &Var)| {
        let got = gradients.get(var).with_context(|| format!("{name} has no gradient"))?;
        fixture.compare(&format!("grad.{}", stored(name)), got, Tolerance::GRADIENT)
    };
    parameters.iter().map(compare).collect()
}
