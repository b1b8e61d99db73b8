//! Multistep methods, which use the velocities of earlier steps: Adams-Bashforth, and DPM-Solver++'s.

use candle_core::{Result, Tensor};

use super::base::{History, Solver, Velocity, weighted_sum};
use crate::error::FlowError;
use crate::time_grid::Step;

/// Adams-Bashforth method of order `k`: integrates the polynomial through the last velocities. One evaluation
/// per step.
///
/// ```text
/// w_j = integral over [t_i, t_{i+1}] of prod_{l != j} (s - t_l) / (t_j - t_l) ds
/// x  <- x + (sum_j w_j v_j / sum_j w_j) (t_{i+1} - t_i)
/// ```
///
/// with `j` over the last `min(k, i + 1)` steps. Appendix E of arXiv:2504.05741.
///
/// A run starts with fewer velocities than `k`, hence with lower orders, as published; the error of the first
/// (Euler) step then bounds the whole run to order `min(k, 2)`. With exact velocities of `k - 1` earlier times
/// in the history, the order is `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdamsBashforth {
    // Invariant: in 1..=4.
    order: usize,
}

impl AdamsBashforth {
    /// The method of `order` in 1..=4; order 1 is Euler's method.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] for any other order.
    pub fn new(order: usize) -> std::result::Result<Self, FlowError> {
        if !(1..=4).contains(&order) {
            return Err(FlowError::invalid("order of the adams-bashforth solver", "in 1..=4", order));
        }
        Ok(Self { order })
    }
}

impl Solver for AdamsBashforth {
    fn name(&self) -> &str {
        match self.order {
            1 => "adams1",
            2 => "adams2",
            3 => "adams3",
            _ => "adams4",
        }
    }

    fn order(&self) -> usize {
        self.order
    }

    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, history: &mut History) -> Result<Tensor> {
        history.last_before(step.t)?;
        history.push(step.t, velocity(x, step.start())?, self.order);
        let nodes: Vec<f64> = history.iter().map(|(t, _)| (t - step.t) / step.dt()).collect();
        let mean = weighted_sum(&adams_weights(&nodes), history.iter().map(|(_, v)| v))?;
        x + (mean * step.dt())?
    }
}

/// Integrals over [0, 1] of the Lagrange polynomials of `nodes`, divided by their sum.
///
/// The step is mapped to [0, 1] so that the numbers stay near 1 however short it is.
fn adams_weights(nodes: &[f64]) -> Vec<f64> {
    let mut weights = Vec::with_capacity(nodes.len());
    for (j, node) in nodes.iter().enumerate() {
        let mut polynomial = vec![1.0]; // coefficients, lowest power first
        for (l, other) in nodes.iter().enumerate() {
            if l != j {
                polynomial = times_linear(&polynomial, *other, node - other);
            }
        }
        weights.push(polynomial.iter().enumerate().map(|(power, c)| c / (power + 1) as f64).sum::<f64>());
    }
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// `polynomial * (s - root) / divisor`.
fn times_linear(polynomial: &[f64], root: f64, divisor: f64) -> Vec<f64> {
    let mut product = vec![0.0; polynomial.len() + 1];
    for (power, c) in polynomial.iter().enumerate() {
        product[power] -= c * root / divisor;
        product[power + 1] += c / divisor;
    }
    product
}

/// Second-order multistep method on the data predicted by each velocity. One evaluation per step.
///
/// ```text
/// d   = x + (1 - t) v(x, t)                                  data predicted at t
/// d'  = d + (d - d_before) dt / (2 (t - t_before))           extrapolated to the middle of the step
/// x  <- r x + (t_next - r t) d',   r = (1 - t_next) / (1 - t)
/// ```
///
/// The update is exact where the predicted data are constant, as DPM-Solver++(2M)'s (arXiv:2211.01095) on
/// the linear path. Differs from it: the extrapolation is linear in flow time, not in
/// `log(t / (1 - t))`, which is infinite at both ends of a flow. The first step is Euler's.
///
/// Its order is 2 on any grid that ends before `t = 1`; up to the end the error falls as `log(N) / N^2`,
/// because a step's error has the weight `1 / (1 - t_next)`. The last step ends on `d'`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dpm2;

impl Solver for Dpm2 {
    fn name(&self) -> &str {
        "dpm2"
    }

    fn order(&self) -> usize {
        2
    }

    fn step(&self, velocity: Velocity<'_>, x: &Tensor, step: Step, history: &mut History) -> Result<Tensor> {
        let data = (x + (velocity(x, step.start())? * (1.0 - step.t))?)?;
        let middle = match history.last_before(step.t)? {
            None => data.clone(),
            Some((t, before)) => {
                let reach = step.dt() / (2.0 * (step.t - t));
                (&data + ((&data - before)? * reach)?)?
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
    use proptest::prelude::*;

    use super::*;
    use crate::model::Evaluation;
    use crate::time_grid::TimeGrid;

    #[test]
    fn even_grids_have_the_textbook_weights() {
        let textbook: [&[f64]; 4] = [&[1.0], &[-1.0, 3.0], &[5.0, -16.0, 23.0], &[-9.0, 37.0, -59.0, 55.0]];
        for (expected, divisor) in textbook.iter().zip([1.0, 2.0, 12.0, 24.0]) {
            let nodes: Vec<f64> =
                (0..expected.len()).map(|j| j as f64 - (expected.len() - 1) as f64).collect();
            for (got, want) in adams_weights(&nodes).iter().zip(*expected) {
                assert!((got - want / divisor).abs() < 1e-13, "{:?}", adams_weights(&nodes));
            }
        }
    }

    proptest! {
        #[test]
        fn uneven_weights_integrate_polynomials_exactly(gaps in prop::collection::vec(0.2..3.0f64, 0..4)) {
            let mut nodes = vec![0.0];
            for gap in gaps {
                nodes.insert(0, nodes[0] - gap);
            }
            for power in 0..nodes.len() as i32 {
                let got: f64 = adams_weights(&nodes).iter().zip(&nodes).map(|(w, s)| w * s.powi(power)).sum();
                prop_assert!((got - 1.0 / f64::from(power + 1)).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn bad_orders_and_stale_histories_are_errors() {
        for order in [0, 5] {
            assert!(matches!(AdamsBashforth::new(order), Err(FlowError::Invalid { .. })));
        }
        let x = Tensor::new(1f64, &Device::Cpu).unwrap();
        let mut history = History::default();
        history.push(0.5, x.clone(), 1);
        let step = Step { index: 0, t: 0.5, t_next: 0.6 };
        for solver in [&AdamsBashforth::new(2).unwrap() as &dyn Solver, &Dpm2] {
            let result = solver.step(&mut |x, _| Ok(x.clone()), &x, step, &mut history);
            assert!(result.unwrap_err().to_string().contains("history"));
        }
    }

    #[test]
    fn dpm_is_exact_towards_a_single_data_point() {
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
}
