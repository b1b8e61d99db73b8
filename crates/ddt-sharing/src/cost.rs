//! Costs of plans, added exactly.

use crate::plan::SharingPlan;

/// A plan and the sum of the errors that it accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanWithCost {
    /// The plan.
    pub plan: SharingPlan,
    /// Sum over all steps of the error of the self-condition in use (unitless): a dissimilarity, or the
    /// relative error of a forecast, as the planner counts it.
    pub cost: f64,
}

impl PlanWithCost {
    /// Mean error of a step, `cost / N`; for forecasts weighted by length and guidance, as the cost is.
    pub fn mean_error(&self) -> f64 {
        self.cost / self.plan.num_steps() as f64
    }

    /// One minus the mean error: for a plan made from dissimilarities, the mean similarity between the
    /// self-condition in use and the step's own.
    pub fn mean_similarity(&self) -> f64 {
        1.0 - self.mean_error()
    }
}

/// Costs as whole multiples of a small power of two: sums are the same in any order, and a tie is a tie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedPoint {
    units_per_one: f64,
}

impl FixedPoint {
    /// The smallest unit, at least `2^-53`, in which `largest` is at most `2^62` units.
    pub(crate) fn for_costs_up_to(largest: usize) -> Self {
        let bits = (62 - largest.next_power_of_two().ilog2()).min(53);
        Self { units_per_one: (1_u64 << bits) as f64 }
    }

    pub(crate) fn units(self, cost: f64) -> i64 {
        (cost * self.units_per_one).round() as i64
    }

    pub(crate) fn value(self, units: i64) -> f64 {
        units as f64 / self.units_per_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_cost_fits() {
        for largest in [1, 2, 511, 512, 513, 4096, 1 << 40] {
            let unit = FixedPoint::for_costs_up_to(largest);
            assert!(unit.units(largest as f64) <= 1 << 62);
            assert_eq!(unit.value(unit.units(largest as f64)), largest as f64);
        }
        // `1 - S` of any `S` in [-1, 1] is a multiple of 2^-53.
        assert_eq!(FixedPoint::for_costs_up_to(512).units(f64::EPSILON / 2.0), 1);
    }
}
