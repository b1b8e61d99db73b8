//! Classifier-free guidance inside a time interval.

use std::num::NonZeroUsize;

use candle_core::{Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::error::{FlowError, Result};
use crate::model::{ClassConditional, Evaluation, CfgBatch, VelocityModel};
use crate::time_grid::TimeGrid;

/// How strongly, and when, a class pulls.
///
/// ```text
/// v = v_none + scale (v_class - v_none)   where low < t < high
/// v = v_class                             elsewhere
/// ```
///
/// Published: scale 2.0 at 256 px, 3.0 at 512 px, interval (0.3, 1); Fig. 9 of arXiv:2504.05741 sweeps both.
///
/// DiT's published code guides the first three of four channels alone, and those that follow keep
/// `v_class`; [`with_channels`](Self::with_channels) does so for any number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parameters", into = "Parameters")]
pub struct Guidance {
    // Invariant: all finite, interval.0 < interval.1.
    scale: f64,
    interval: (f64, f64),
    // None: all of them.
    channels: Option<NonZeroUsize>,
}

/// What a guidance is written as.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    scale: f64,
    interval: (f64, f64),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channels: Option<NonZeroUsize>,
}

impl Guidance {
    /// Guides by `scale` (unitless, 1 is no guidance) for times strictly inside `interval`.
    ///
    /// # Errors
    ///
    /// [`FlowError::GuidanceScale`] unless `scale` is finite;
    /// [`FlowError::GuidanceInterval`] unless the bounds are finite and increasing.
    pub fn new(scale: f64, interval: (f64, f64)) -> Result<Self> {
        let (low, high) = interval;
        if !scale.is_finite() {
            return Err(FlowError::GuidanceScale { got: scale });
        }
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(FlowError::GuidanceInterval { low, high });
        }
        Ok(Self { scale, interval, channels: None })
    }

    /// No guidance at any time: the class rows alone.
    pub const fn none() -> Self {
        Self { scale: 1.0, interval: (0.0, 1.0), channels: None }
    }

    /// Guides the first `channels` channels alone; latents that have no more are guided whole.
    pub const fn with_channels(self, channels: NonZeroUsize) -> Self {
        Self { channels: Some(channels), ..self }
    }

    /// The guidance scale.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The bounds between which guidance acts, both excluded.
    pub fn interval(&self) -> (f64, f64) {
        self.interval
    }

    /// How many channels are guided, the first ones; all where it says `None`.
    pub fn channels(&self) -> Option<NonZeroUsize> {
        self.channels
    }

    /// Says whether the unconditional half enters the result of a step that starts at `t`.
    ///
    /// A step is guided or not as a whole, by its start: a solver that evaluates inside a step, or at its
    /// end, gets the same kind of velocity throughout. So the grid should resolve the interval.
    ///
    /// Both bounds are strict, and a scale of 1 never needs it.
    /// Time and bounds are rounded to f32 before they are compared: a grid time that equals a bound
    /// but for the last bits of f64 (`3 * 0.1` and `0.3`) counts as on it, hence as not guided.
    /// The published code compares in f32 too, but builds its grid in f32, so there such a tie can
    /// fall on either side; the published settings have none.
    pub fn is_guided(&self, t: f64) -> bool {
        let (low, high) = self.interval;
        self.scale != 1.0 && (low as f32) < (t as f32) && (t as f32) < (high as f32)
    }

    /// [`is_guided`](Self::is_guided) at the start of each step of a grid.
    pub fn guided_steps(&self, grid: &TimeGrid) -> Vec<bool> {
        grid.steps().map(|step| self.is_guided(step.t)).collect()
    }
}

impl TryFrom<Parameters> for Guidance {
    type Error = FlowError;

    fn try_from(it: Parameters) -> Result<Self> {
        Ok(Self { channels: it.channels, ..Self::new(it.scale, it.interval)? })
    }
}

impl From<Guidance> for Parameters {
    fn from(it: Guidance) -> Self {
        Self { scale: it.scale, interval: it.interval, channels: it.channels }
    }
}

/// A class-conditional model under guidance.
///
/// Asks for both halves where the time is guided, and for the class rows alone elsewhere.
#[derive(Clone, Debug)]
pub struct Guided<M> {
    /// The model that is guided.
    pub model: M,
    /// How strongly, and when.
    pub guidance: Guidance,
}

impl<M: ClassConditional> VelocityModel for Guided<M> {
    type State = M::State;

    fn velocity(&self, x_t: &Tensor, at: Evaluation, state: &mut Self::State) -> candle_core::Result<Tensor> {
        if !self.guidance.is_guided(at.step_t) {
            return self.model.velocity_rows(x_t, at, CfgBatch::Cond, state);
        }
        let batch = x_t.dim(0)?;
        let both = self.model.velocity_rows(x_t, at, CfgBatch::CondUncond, state)?; // (2B, ...)
        if both.dim(0)? != CfgBatch::CondUncond.count(batch) {
            bail!(
                "expected {} rows of velocities, both halves of a batch of {batch}, got shape {:?}",
                CfgBatch::CondUncond.count(batch),
                both.dims()
            );
        }
        let class = both.narrow(0, 0, batch)?; // (B, ...)
        let none = both.narrow(0, batch, batch)?; // (B, ...)
        let limit = self.guidance.channels.map(NonZeroUsize::get);
        match (limit, class.dims().get(1)) {
            (Some(guided), Some(&channels)) if guided < channels => {
                let part = |it: &Tensor| it.narrow(1, 0, guided);
                let guide = self.mix(&part(&class)?, &part(&none)?)?;
                Tensor::cat(&[guide, class.narrow(1, guided, channels - guided)?], 1)
            }
            _ => self.mix(&class, &none),
        }
    }
}

impl<M> Guided<M> {
    fn mix(&self, class: &Tensor, none: &Tensor) -> candle_core::Result<Tensor> {
        none + ((class - none)? * self.guidance.scale)?
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use candle_core::Device;

    use super::*;

    /// Velocity `x_t + t` with the class and `-x_t` without, at `t = 0.5` whenever the step starts; notes
    /// what it was asked for.
    #[derive(Default)]
    struct Recorder {
        asked: RefCell<Vec<CfgBatch>>,
    }

    impl ClassConditional for Recorder {
        type State = usize;

        fn velocity_rows(
            &self,
            x_t: &Tensor,
            at: Evaluation,
            rows: CfgBatch,
            state: &mut usize,
        ) -> candle_core::Result<Tensor> {
            self.asked.borrow_mut().push(rows);
            *state += 1;
            let class = (x_t + at.t)?;
            match rows {
                CfgBatch::Cond => Ok(class),
                CfgBatch::CondUncond => Tensor::cat(&[&class, &x_t.neg()?], 0),
            }
        }
    }

    fn velocity(scale: f64, t: f64) -> (Vec<f32>, Vec<CfgBatch>) {
        let model = Recorder::default();
        let guided = Guided { model: &model, guidance: Guidance::new(scale, (0.3, 0.8)).unwrap() };
        let x_t = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut state = 0;
        let at = Evaluation { step: 0, step_t: t, t: 0.5 };
        let v = guided.velocity(&x_t, at, &mut state).unwrap();
        assert_eq!(state, 1);
        (v.to_vec1().unwrap(), model.asked.into_inner())
    }

    #[test]
    fn follows_the_formula_inside_the_interval() {
        // none + 3 (class - none): -1 + 3 (1.5 + 1), -2 + 3 (2.5 + 2).
        assert_eq!(velocity(3.0, 0.5), (vec![6.5, 11.5], vec![CfgBatch::CondUncond]));
        assert_eq!(velocity(0.0, 0.5), (vec![-1.0, -2.0], vec![CfgBatch::CondUncond]));
    }

    #[test]
    fn the_unconditional_half_is_not_asked_for_without_need() {
        assert_eq!(velocity(3.0, 0.25), (vec![1.5, 2.5], vec![CfgBatch::Cond]));
        assert_eq!(velocity(3.0, 1.0).1, [CfgBatch::Cond]);
        assert_eq!(velocity(1.0, 0.5), (vec![1.5, 2.5], vec![CfgBatch::Cond]));
    }

    #[test]
    fn channels_beyond_the_limit_keep_the_class_velocity() {
        let x_t = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        let velocity = |channels: usize| {
            let guidance = Guidance::new(3.0, (0.0, 1.0)).unwrap();
            let guidance = guidance.with_channels(NonZeroUsize::new(channels).unwrap());
            let guided = Guided { model: Recorder::default(), guidance };
            let at = Evaluation { step: 0, step_t: 0.5, t: 0.5 };
            guided.velocity(&x_t, at, &mut 0).unwrap().to_vec2::<f32>().unwrap()
        };
        // Guided: -x + 3 (2 x + 0.5) = 5 x + 1.5; by the class alone: x + 0.5.
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
        let grid = TimeGrid::new(10, None, 1.0).unwrap();
        let guided: Vec<usize> = (0..10).filter(|&index| guidance.guided_steps(&grid)[index]).collect();
        assert_eq!(guided, [4, 5, 6]);
    }

    #[test]
    fn published_setting_guides_172_of_250_steps() {
        let grid = TimeGrid::new(250, Some(0.04), 1.0).unwrap();
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let guided = guidance.guided_steps(&grid);
        assert_eq!(guided.iter().position(|&it| it), Some(78));
        assert!(guided[78..].iter().all(|&it| it));
        assert!(!Guidance::none().guided_steps(&grid).contains(&true));
    }

    #[test]
    fn too_few_rows_are_an_error() {
        struct HalfOnly;
        impl ClassConditional for HalfOnly {
            type State = ();
            fn velocity_rows(
                &self,
                x_t: &Tensor,
                _: Evaluation,
                _: CfgBatch,
                _: &mut (),
            ) -> candle_core::Result<Tensor> {
                Ok(x_t.clone())
            }
        }
        let guided = Guided { model: HalfOnly, guidance: Guidance::new(2.0, (0.0, 1.0)).unwrap() };
        let x_t = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let err = guided.velocity(&x_t, Evaluation { step: 0, step_t: 0.5, t: 0.5 }, &mut ()).unwrap_err();
        assert!(err.to_string().contains("expected 4 rows"), "{err}");
    }

    #[test]
    fn bad_parameters_are_errors() {
        for scale in [f64::NAN, f64::INFINITY] {
            assert!(matches!(Guidance::new(scale, (0.0, 1.0)), Err(FlowError::GuidanceScale { .. })));
        }
        for interval in [(0.5, 0.5), (1.0, 0.3), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert!(matches!(Guidance::new(2.0, interval), Err(FlowError::GuidanceInterval { .. })));
        }
    }

    #[test]
    fn serialises_and_validates() {
        let guidance = Guidance::new(2.0, (0.3, 1.0)).unwrap();
        let json = serde_json::to_string(&guidance).unwrap();
        assert_eq!(json, r#"{"scale":2.0,"interval":[0.3,1.0]}"#);
        assert_eq!(serde_json::from_str::<Guidance>(&json).unwrap(), guidance);
        assert!(serde_json::from_str::<Guidance>(r#"{"scale":2.0,"interval":[1.0,0.3]}"#).is_err());
        let three = guidance.with_channels(NonZeroUsize::new(3).unwrap());
        let json = serde_json::to_string(&three).unwrap();
        assert_eq!(json, r#"{"scale":2.0,"interval":[0.3,1.0],"channels":3}"#);
        assert_eq!(serde_json::from_str::<Guidance>(&json).unwrap(), three);
    }
}
