//! Classifier-free guidance in a time interval, and autoguidance.

use std::num::NonZeroUsize;

use candle_core::{Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::error::{FlowError, Result};
use crate::model::{CfgBatch, ClassConditional, Evaluation, VelocityModel};
use crate::time_grid::TimeGrid;

/// Guidance scale, and the time interval and channels it acts on.
///
/// ```text
/// v = v_uncond + scale (v_cond - v_uncond)   where low < t < high
/// v = v_cond                                 elsewhere
/// ```
///
/// Published: scale 2.0 at 256 px, 3.0 at 512 px, interval (0.3, 1); Fig. 9 of arXiv:2504.05741 sweeps both.
///
/// DiT's published code guides only the first three of four channels; [`with_channels`](Self::with_channels)
/// does so for any number, and the other channels keep `v_cond`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parameters", into = "Parameters")]
pub struct Guidance {
    // Invariant: all finite, interval.0 < interval.1.
    scale: f64,
    interval: (f64, f64),
    // None: all of them.
    channels: Option<NonZeroUsize>,
    // Whether the bounds belong to the interval.
    closed: bool,
}

/// Serialised form of a guidance.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    scale: f64,
    interval: (f64, f64),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<NonZeroUsize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
}

impl Guidance {
    /// Guidance by `scale` (unitless, 1 is no guidance) for times strictly inside `interval`.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] unless `scale` is finite and the bounds are finite and increasing.
    pub fn new(scale: f64, interval: (f64, f64)) -> Result<Self> {
        let (low, high) = interval;
        if !scale.is_finite() {
            return Err(FlowError::invalid("guidance scale", "finite (1 means no guidance)", scale));
        }
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(FlowError::invalid("guidance interval", "finite with low < high", interval));
        }
        Ok(Self { scale, interval, channels: None, closed: false })
    }

    /// No guidance at any time.
    pub const fn none() -> Self {
        Self { scale: 1.0, interval: (0.0, 1.0), channels: None, closed: false }
    }

    /// The same with the bounds guided too, as DiT^DH's published sampler has it: from 0 on, the first step is guided.
    pub const fn closed(self) -> Self {
        Self { closed: true, ..self }
    }

    /// Restricts guidance to the first `channels` channels; latents with fewer are guided whole.
    pub const fn with_channels(self, channels: NonZeroUsize) -> Self {
        Self { channels: Some(channels), ..self }
    }

    /// Guidance scale.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether steps that start at a bound are guided too.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bounds between which guidance acts, both excluded unless it is [closed](Self::closed).
    pub fn interval(&self) -> (f64, f64) {
        self.interval
    }

    /// Number of guided channels, counted from the first; `None` means all.
    pub fn channels(&self) -> Option<NonZeroUsize> {
        self.channels
    }

    /// Whether a step that starts at `t` is guided.
    ///
    /// The start decides for the whole step: a solver that evaluates inside a step, or at its end, gets the
    /// same kind of velocity throughout. So the grid should resolve the interval.
    ///
    /// Both bounds are strict, unless the guidance is [closed](Self::closed), and a scale of 1 guides nothing.
    /// Time and bounds are rounded to f32 before they are compared: a grid time that equals a bound
    /// except in the last bits of f64 (`3 * 0.1` and `0.3`) counts as on it, hence as not guided.
    /// The published code compares in f32 too, but builds its grid in f32, so there such a tie can
    /// fall on either side; the published settings have none.
    pub fn is_guided(&self, t: f64) -> bool {
        let (low, high, t) = (self.interval.0 as f32, self.interval.1 as f32, t as f32);
        self.scale != 1.0 && (low < t && t < high || self.closed && (t == low || t == high))
    }

    /// Growth of an error of the network's velocity at each step of a grid: the larger factor of the two
    /// batches in `v_uncond + scale (v_cond - v_uncond)`, and 1 where a step is not guided.
    pub fn step_factors(&self, grid: &TimeGrid) -> Vec<f64> {
        let factor = self.scale.abs().max((1.0 - self.scale).abs());
        self.guided_steps(grid).into_iter().map(|guided| if guided { factor } else { 1.0 }).collect()
    }

    /// [`is_guided`](Self::is_guided) for each step of a grid.
    pub fn guided_steps(&self, grid: &TimeGrid) -> Vec<bool> {
        grid.steps().map(|step| self.is_guided(step.t)).collect()
    }
}

impl TryFrom<Parameters> for Guidance {
    type Error = FlowError;

    fn try_from(it: Parameters) -> Result<Self> {
        Ok(Self { channels: it.channels, closed: it.closed, ..Self::new(it.scale, it.interval)? })
    }
}

impl From<Guidance> for Parameters {
    fn from(it: Guidance) -> Self {
        Self { scale: it.scale, interval: it.interval, channels: it.channels, closed: it.closed }
    }
}

/// A class-conditional model under guidance.
///
/// Evaluates the unconditional batch only at guided steps.
#[derive(Clone, Debug)]
pub struct Guided<M> {
    /// The guided model.
    pub model: M,
    /// Scale, interval and channels.
    pub guidance: Guidance,
}

impl<M: ClassConditional> VelocityModel for Guided<M> {
    type State = M::State;

    fn velocity(&self, x_t: &Tensor, at: Evaluation, state: &mut Self::State) -> candle_core::Result<Tensor> {
        if !self.guidance.is_guided(at.step_t) {
            return self.model.velocities(x_t, at, CfgBatch::Cond, state);
        }
        let batch = x_t.dim(0)?;
        let both = self.model.velocities(x_t, at, CfgBatch::CondUncond, state)?; // (2B, ...)
        if both.dim(0)? != CfgBatch::CondUncond.count(batch) {
            bail!(
                "expected {} rows of velocities, conditional and unconditional for a batch of {batch}, got \
                 shape {:?}",
                CfgBatch::CondUncond.count(batch),
                both.dims()
            );
        }
        let cond = both.narrow(0, 0, batch)?; // (B, ...)
        let uncond = both.narrow(0, batch, batch)?; // (B, ...)
        let mix = |cond: &Tensor, uncond: &Tensor| uncond + ((cond - uncond)? * self.guidance.scale)?;
        match (self.guidance.channels.map(NonZeroUsize::get), cond.dims().get(1)) {
            (Some(guided), Some(&channels)) if guided < channels => {
                let mixed = mix(&cond.narrow(1, 0, guided)?, &uncond.narrow(1, 0, guided)?)?;
                Tensor::cat(&[mixed, cond.narrow(1, guided, channels - guided)?], 1)
            }
            _ => mix(&cond, &uncond),
        }
    }
}

/// Autoguidance (arXiv:2406.02507): a guiding network takes the place of the unconditional batch.
///
/// ```text
/// v = v_guiding + scale (v - v_guiding)   under Guided
/// ```
///
/// Both networks see the class. The guiding network is smaller or less trained and makes the same mistakes
/// more strongly; guiding away from it does not narrow a class as guiding away from "no class" does.
///
/// Both networks run only their conditional batch; the guiding network only at guided steps.
#[derive(Clone, Debug)]
pub struct Autoguided<M, G> {
    /// The guided network.
    pub model: M,
    /// The guiding network.
    pub guiding: G,
}

impl<M: ClassConditional, G: ClassConditional> ClassConditional for Autoguided<M, G> {
    type State = (M::State, G::State);

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        batch: CfgBatch,
        (state, guiding_state): &mut Self::State,
    ) -> candle_core::Result<Tensor> {
        let v = self.model.velocities(x_t, at, CfgBatch::Cond, state)?;
        match batch {
            CfgBatch::Cond => Ok(v),
            CfgBatch::CondUncond => {
                let guiding = self.guiding.velocities(x_t, at, CfgBatch::Cond, guiding_state)?;
                Tensor::cat(&[&v, &guiding], 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Velocity `x_t + t` with the class and `-x_t` without; the state records the batches asked for.
    struct Recorder;

    impl ClassConditional for Recorder {
        type State = Vec<CfgBatch>;

        fn velocities(
            &self,
            x_t: &Tensor,
            at: Evaluation,
            batch: CfgBatch,
            asked: &mut Vec<CfgBatch>,
        ) -> candle_core::Result<Tensor> {
            asked.push(batch);
            let cond = (x_t + at.t)?;
            match batch {
                CfgBatch::Cond => Ok(cond),
                CfgBatch::CondUncond => Tensor::cat(&[&cond, &x_t.neg()?], 0),
            }
        }
    }

    /// Evaluates at `t = 0.5` in a step that starts at `step_t`.
    fn velocity(scale: f64, step_t: f64) -> (Vec<f32>, Vec<CfgBatch>) {
        let guided = Guided { model: Recorder, guidance: Guidance::new(scale, (0.3, 0.8)).unwrap() };
        let x_t = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut asked = Vec::new();
        let v = guided.velocity(&x_t, Evaluation { step: 0, step_t, t: 0.5 }, &mut asked).unwrap();
        (v.to_vec1().unwrap(), asked)
    }

    #[test]
    fn follows_the_formula_inside_the_interval() {
        // uncond + 3 (cond - uncond): -1 + 3 (1.5 + 1), -2 + 3 (2.5 + 2).
        assert_eq!(velocity(3.0, 0.5), (vec![6.5, 11.5], vec![CfgBatch::CondUncond]));
        assert_eq!(velocity(0.0, 0.5), (vec![-1.0, -2.0], vec![CfgBatch::CondUncond]));
    }

    #[test]
    fn unguided_steps_run_only_the_conditional_batch() {
        assert_eq!(velocity(3.0, 0.25), (vec![1.5, 2.5], vec![CfgBatch::Cond]));
        assert_eq!(velocity(3.0, 1.0).1, [CfgBatch::Cond]);
        assert_eq!(velocity(1.0, 0.5), (vec![1.5, 2.5], vec![CfgBatch::Cond]));
    }

    #[test]
    fn channels_beyond_the_limit_keep_the_conditional_velocity() {
        let x_t = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        let velocity = |channels: usize| {
            let guidance = Guidance::new(3.0, (0.0, 1.0)).unwrap();
            let guidance = guidance.with_channels(NonZeroUsize::new(channels).unwrap());
            let at = Evaluation { step: 0, step_t: 0.5, t: 0.5 };
            let v = Guided { model: Recorder, guidance }.velocity(&x_t, at, &mut Vec::new());
            v.unwrap().to_vec2::<f32>().unwrap()
        };
        // Guided: -x + 3 (2 x + 0.5) = 5 x + 1.5; conditional: x + 0.5.
        assert_eq!(velocity(2), [[6.5, 11.5, 3.5]]);
        assert_eq!(velocity(3), [[6.5, 11.5, 16.5]]);
        assert_eq!(velocity(9), velocity(3));
    }

    #[test]
    fn bounds_are_strict_even_when_rounding_blurs_them() {
        let guidance = Guidance::new(2.0, (0.3, 0.7)).unwrap();
        for t in [0.3, 0.1 + 0.2, 0.3f32 as f64, 0.7, 0.7f32 as f64, 0.0, 1.0, f64::NAN] {
            assert!(!guidance.is_guided(t), "{t}");
        }
        for t in [0.3001, 0.5, 0.6999] {
            assert!(guidance.is_guided(t), "{t}");
        }
        for t in [0.3, 0.1 + 0.2, 0.5, 0.7] {
            assert!(guidance.closed().is_guided(t), "{t}");
        }
        assert!(!guidance.closed().is_guided(0.2999) && !Guidance::none().closed().is_guided(0.5));
        let guided = guidance.guided_steps(&TimeGrid::new(10, None, 1.0).unwrap());
        let guided: Vec<usize> = (0..10).filter(|&index| guided[index]).collect();
        assert_eq!(guided, [4, 5, 6]);
    }

    #[test]
    fn published_setting_guides_172_of_250_steps() {
        let grid = TimeGrid::new(250, Some(0.04), 1.0).unwrap();
        let guided = Guidance::new(2.0, (0.3, 1.0)).unwrap().guided_steps(&grid);
        assert_eq!(guided.iter().position(|&it| it), Some(78));
        assert!(guided[78..].iter().all(|&it| it));
        assert!(!Guidance::none().guided_steps(&grid).contains(&true));
        for (scale, factor) in [(3.0, 3.0), (0.25, 0.75), (-1.0, 2.0), (1.0, 1.0)] {
            let factors = Guidance::new(scale, (0.3, 1.0)).unwrap().step_factors(&grid);
            let wanted = guided.iter().map(|&it| if it { factor } else { 1.0 });
            assert!(factors.into_iter().eq(wanted), "{scale}");
        }
    }

    #[test]
    fn too_few_rows_are_an_error() {
        struct CondOnly;
        impl ClassConditional for CondOnly {
            type State = ();
            fn velocities(
                &self,
                x_t: &Tensor,
                _: Evaluation,
                _: CfgBatch,
                _: &mut (),
            ) -> candle_core::Result<Tensor> {
                Ok(x_t.clone())
            }
        }
        let guided = Guided { model: CondOnly, guidance: Guidance::new(2.0, (0.0, 1.0)).unwrap() };
        let x_t = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let err = guided.velocity(&x_t, Evaluation { step: 0, step_t: 0.5, t: 0.5 }, &mut ()).unwrap_err();
        assert!(err.to_string().contains("expected 4 rows"), "{err}");
    }

    #[test]
    fn autoguidance_runs_the_guiding_network_only_at_guided_steps() {
        /// Velocity `factor x_t`; the state counts calls.
        struct Scaled(f64);
        impl ClassConditional for Scaled {
            type State = usize;
            fn velocities(
                &self,
                x_t: &Tensor,
                _: Evaluation,
                batch: CfgBatch,
                calls: &mut usize,
            ) -> candle_core::Result<Tensor> {
                assert_eq!(batch, CfgBatch::Cond);
                *calls += 1;
                x_t * self.0
            }
        }
        let model = Autoguided { model: Scaled(3.0), guiding: Scaled(2.0) };
        let guided = Guided { model, guidance: Guidance::new(4.0, (0.3, 1.0)).unwrap() };
        let x_t = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut calls = (0, 0);
        let mut velocity = |t: f64| {
            let v = guided.velocity(&x_t, Evaluation { step: 0, step_t: t, t }, &mut calls).unwrap();
            v.to_vec1::<f32>().unwrap()
        };
        // 2 + 4 (3 - 2) = 6.
        assert_eq!(velocity(0.5), [6.0, -12.0]);
        assert_eq!(velocity(0.2), [3.0, -6.0]);
        assert_eq!(calls, (2, 1));
    }

    #[test]
    fn bad_parameters_are_errors() {
        let invalid = |scale, interval| match Guidance::new(scale, interval) {
            Err(FlowError::Invalid { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        for scale in [f64::NAN, f64::INFINITY] {
            assert_eq!(invalid(scale, (0.0, 1.0)), "guidance scale");
        }
        for interval in [(0.5, 0.5), (1.0, 0.3), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert_eq!(invalid(2.0, interval), "guidance interval");
        }
    }

    #[test]
    fn serialises_and_validates() {
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let three = guidance.with_channels(NonZeroUsize::new(3).unwrap());
        for (guidance, json) in [
            (guidance, r#"{"scale":2.0,"interval":[0.3,1.0]}"#),
            (three, r#"{"scale":2.0,"interval":[0.3,1.0],"channels":3}"#),
        ] {
            assert_eq!(serde_json::to_string(&guidance).unwrap(), json);
            assert_eq!(serde_json::from_str::<Guidance>(json).unwrap(), guidance);
        }
        assert!(serde_json::from_str::<Guidance>(r#"{"scale":2.0,"interval":[1.0,0.3]}"#).is_err());
    }
}
