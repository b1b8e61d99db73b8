//! The optimiser and the average of weights.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use ddt_train::{AdamWConfig, Moments, adamw_step, average_step};

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
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
            let name = format!("out.{name}.{i}");
            let got = Tensor::from_vec(values, start.shape(), start.device())?;
            all.push(Comparison::tensors(
                &name,
                &got,
                &fixture.tensor(&name)?,
                Tolerance::RelativeRms(1e-6),
            )?);
        }
    }
    Ok(all)
}
