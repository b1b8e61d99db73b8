//! Guidance by a weaker network instead of "no class".

use candle_core::{Result, Tensor};

use crate::model::{ClassConditional, Evaluation, CfgBatch};

/// A network, with a weaker one of the same task in the place of its "no class" rows.
///
/// ```text
/// v = v_weak + scale (v - v_weak)
/// ```
///
/// under [`Guided`](crate::Guided): autoguidance (arXiv:2406.02507). Both networks see the class; a smaller
/// network, or an earlier state of the same one, makes the same mistakes larger, and guidance away from it
/// does not narrow a class as guidance away from "no class" does.
///
/// The main network is asked for its class rows alone, at every step; so is the weaker one, at guided steps.
#[derive(Clone, Debug)]
pub struct Autoguided<M, W> {
    /// The network that is guided.
    pub model: M,
    /// The one it is guided away from.
    pub weaker: W,
}

impl<M: ClassConditional, W: ClassConditional> ClassConditional for Autoguided<M, W> {
    type State = (M::State, W::State);

    fn velocity_rows(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        (state, weaker): &mut Self::State,
    ) -> Result<Tensor> {
        let class = self.model.velocity_rows(x_t, at, CfgBatch::Cond, state)?;
        match rows {
            CfgBatch::Cond => Ok(class),
            CfgBatch::CondUncond => {
                let weak = self.weaker.velocity_rows(x_t, at, CfgBatch::Cond, weaker)?;
                Tensor::cat(&[&class, &weak], 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::guidance::{Guidance, Guided};
    use crate::model::VelocityModel;

    /// Velocity `factor x_t`; counts its calls.
    struct Scaled(f64);

    impl ClassConditional for Scaled {
        type State = usize;

        fn velocity_rows(
            &self,
            x_t: &Tensor,
            _: Evaluation,
            rows: CfgBatch,
            calls: &mut usize,
        ) -> Result<Tensor> {
            assert_eq!(rows, CfgBatch::Cond);
            *calls += 1;
            x_t * self.0
        }
    }

    #[test]
    fn guides_away_from_the_weaker_network_where_guidance_acts() {
        let model = Autoguided { model: Scaled(3.0), weaker: Scaled(2.0) };
        let guided = Guided { model, guidance: Guidance::new(4.0, (0.3, 1.0)).unwrap() };
        let x_t = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut state = (0, 0);
        let mut velocity = |t: f64| {
            let v = guided.velocity(&x_t, Evaluation { step: 0, step_t: t, t }, &mut state).unwrap();
            v.to_vec1::<f32>().unwrap()
        };
        // 2 + 4 (3 - 2) = 6.
        assert_eq!(velocity(0.5), [6.0, -12.0]);
        assert_eq!(velocity(0.2), [3.0, -6.0]);
        assert_eq!(state, (2, 1));
    }
}
