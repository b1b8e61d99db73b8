//! Adams-Bashforth's linear multistep method, on uneven grids.

use candle_core::{Result, Tensor, bail};

use super::{History, Solver};
use crate::error::FlowError;
use crate::model::Evaluation;
use crate::time_grid::Step;

/// Adams-Bashforth of order `k`: integrates the polynomial through the last velocities.
///
/// ```text
/// w_j = integral over [t_i, t_{i+1}] of prod_{l != j} (s - t_l) / (t_j - t_l) ds
/// x  <- x + (sum_j w_j v_j / sum_j w_j) (t_{i+1} - t_i)
/// ```
///
/// with `j` over the last `min(k, i + 1)` steps. Appendix E of arXiv:2504.05741.
/// One evaluation a step, whatever the order.
///
/// A run starts with fewer velocities than `k`, hence with lower orders, as published; the first
/// (Euler) step's error then bounds the whole run to order `min(k, 2)`. With exact velocities of
/// `k - 1` earlier times in the history, the order is `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdamsBashforth {
    // Invariant: in 1..=4.
    order: usize,
}

impl AdamsBashforth {
    /// The method of `order` in 1..=4; order 1 is Euler's method.
    ///
    /// # Errors
    ///
    /// [`FlowError::SolverOrder`] for any other order.
    pub fn new(order: usize) -> std::result::Result<Self, FlowError> {
        if (1..=4).contains(&order) { Ok(Self { order }) } else { Err(FlowError::SolverOrder { got: order }) }
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

    fn step(
        &self,
        velocity: &mut dyn FnMut(&Tensor, Evaluation) -> Result<Tensor>,
        x: &Tensor,
        step: Step,
        history: &mut History,
    ) -> Result<Tensor> {
        if let Some((t, _)) = history.iter().next_back()
            && t >= step.t
        {
            bail!(
                "expected a history of times before t = {}, got t = {t}; start runs from an empty one",
                step.t
            );
        }
        history.push(step.t, velocity(x, step.start())?, self.order);

        let nodes: Vec<f64> = history.iter().map(|(t, _)| (t - step.t) / step.dt()).collect();
        let mut mean: Option<Tensor> = None;
        for ((_, v), weight) in history.iter().zip(weights(&nodes)) {
            let term = (v * weight)?;
            mean = Some(match mean {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        match mean {
            Some(mean) => x + (mean * step.dt())?,
            None => bail!("expected at least one velocity in the history"),
        }
    }
}

/// Integrals over [0, 1] of the Lagrange polynomials of `nodes`, divided by their sum.
///
/// The step is mapped to [0, 1] so that the numbers stay near 1 however short it is.
fn weights(nodes: &[f64]) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn even_grids_have_the_textbook_weights() {
        let textbook: [&[f64]; 4] = [&[1.0], &[-1.0, 3.0], &[5.0, -16.0, 23.0], &[-9.0, 37.0, -59.0, 55.0]];
        for (expected, divisor) in textbook.iter().zip([1.0, 2.0, 12.0, 24.0]) {
            let nodes: Vec<f64> =
                (0..expected.len()).map(|j| j as f64 - (expected.len() - 1) as f64).collect();
            for (got, want) in weights(&nodes).iter().zip(*expected) {
                assert!((got - want / divisor).abs() < 1e-13, "{:?}", weights(&nodes));
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
                let got: f64 = weights(&nodes).iter().zip(&nodes).map(|(w, s)| w * s.powi(power)).sum();
                prop_assert!((got - 1.0 / f64::from(power + 1)).abs() < 1e-9);
            }
        }
    }

    fn scalar(value: f64) -> Tensor {
        Tensor::new(value, &Device::Cpu).unwrap()
    }

    #[test]
    fn bad_orders_and_stale_histories_are_errors() {
        for order in [0, 5] {
            assert!(
                matches!(AdamsBashforth::new(order), Err(FlowError::SolverOrder { got }) if got == order)
            );
        }
        let mut history = History::default();
        history.push(0.5, scalar(1.0), 1);
        let step = Step { index: 0, t: 0.5, t_next: 0.6 };
        let result =
            AdamsBashforth::new(2).unwrap().step(&mut |x, _| Ok(x.clone()), &scalar(1.0), step, &mut history);
        assert!(result.unwrap_err().to_string().contains("history"));
    }
}
