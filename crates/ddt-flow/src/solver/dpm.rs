//! A second-order multistep method on the predicted data, after DPM-Solver++.

use candle_core::{Result, Tensor, bail};

use super::{History, Solver};
use crate::model::Evaluation;
use crate::time_grid::Step;

/// Second-order multistep on the data that each velocity predicts. Order 2, one evaluation a step.
///
/// ```text
/// d   = x + (1 - t) v(x, t)                                  data predicted at t
/// d'  = d + (d - d_before) dt / (2 (t - t_before))           extrapolated to the middle of the step
/// x  <- r x + (t_next - r t) d',   r = (1 - t_next) / (1 - t)
/// ```
///
/// The update is exact where the predicted data stand still, as DPM-Solver++(2M)'s (arXiv:2211.01095) on
/// the linear path. Differs from it: the extrapolation is linear in flow time, not in
/// `log(t / (1 - t))`, which is infinite at both ends of a flow. The first step is Euler's.
///
/// Its order is 2 on any grid that ends before `t = 1`; up to the end the error falls as `log(N) / N^2`,
/// because a step's error weighs `1 / (1 - t_next)`. The last step lands on `d'`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpm2;

impl Solver for Dpm2 {
    fn name(&self) -> &str {
        "dpm2"
    }

    fn order(&self) -> usize {
        2
    }

    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>,
        x: &Tensor,
        step: Step,
        history: &mut History,
    ) -> Result<Tensor> {
        let data = (x + (velocity(x, step.start())? * (1.0 - step.t))?)?;
        let middle = match history.iter().next_back() {
            None => data.clone(),
            Some((t, before)) if t < step.t => {
                let reach = step.dt() / (2.0 * (step.t - t));
                (&data + ((&data - before)? * reach)?)?
            }
            Some((t, _)) => {
                bail!(
                    "expected a history of times before t = {}, got t = {t}; start runs from an empty one",
                    step.t
                )
            }
        };
        history.push(step.t, data, 1);
        let ratio = (1.0 - step.t_next) / (1.0 - step.t);
        (x * ratio)? + (middle * (step.t_next - ratio * step.t))?
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::time_grid::TimeGrid;

    #[test]
    fn is_exact_towards_a_single_data_point() {
        let mut x = Tensor::new(&[-1f64, 4.0], &Device::Cpu).unwrap();
        let mut history = History::default();
        for step in TimeGrid::new(3, None, 2.0).unwrap().steps() {
            let towards = &mut |x: &Tensor, at: Evaluation| x.affine(-1.0, 5.0)? / (1.0 - at.t);
            x = Dpm2.step(towards, &x, step, &mut history).unwrap();
            // On the straight line between start and point.
            let expected = [-1.0, 4.0].map(|start| start + (5.0 - start) * step.t_next);
            for (got, want) in x.to_vec1::<f64>().unwrap().iter().zip(expected) {
                assert!((got - want).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_stale_history_is_an_error() {
        let x = Tensor::new(1f64, &Device::Cpu).unwrap();
        let mut history = History::default();
        history.push(0.5, x.clone(), 1);
        let step = TimeGrid::new(2, None, 1.0).unwrap().step(1).unwrap();
        assert!(Dpm2.step(&mut |x, _| Ok(x.clone()), &x, step, &mut history).is_err());
    }
}
