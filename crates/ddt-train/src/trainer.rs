//! A run in memory: parameters, optimiser, averages, and the step that moves them.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use crate::{
    adamw::Moments,
    config::{Precision, TrainConfig},
    error::TrainError,
    gradients::Gradients,
    objective::{Objective, StepAt},
    parameters::Parameters,
    update::{Update, update_parameter},
};

/// An objective, its parameters, their optimiser and averages, after some number of steps.
#[derive(Debug)]
pub struct Trainer<O> {
    cfg: TrainConfig,
    objective: O,
    parameters: Parameters,
    states: Vec<ParameterState>,
    device: Device,
    counters: Counters,
    data: String,
}

/// What training keeps beside a parameter, in f32; `averages` in the order of the configured decays.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParameterState {
    /// The parameter before it was rounded to 16 bits; `None` where it is f32 itself.
    pub(crate) master: Option<Vec<f32>>,
    pub(crate) moments: Moments,
    pub(crate) averages: Vec<Vec<f32>>,
}

/// What a checkpoint keeps one file of: a tensor of every parameter's shape each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Weights,
    FirstMoments,
    SecondMoments,
    /// By the index of its decay.
    Average(usize),
}

/// All that changes in training.
pub(crate) struct Saved {
    pub(crate) counters: Counters,
    /// In f32, in the order of the parameters, as are the states.
    pub(crate) weights: Vec<Tensor>,
    pub(crate) states: Vec<ParameterState>,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// Images seen so far.
    pub images_seen: u64,
    /// Loss of this step's batch, before the update.
    pub loss: f64,
    /// What the loss is made of, if it has parts.
    pub parts: Vec<(&'static str, f64)>,
    /// Euclidean norm of the gradient of all parameters.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Steps skipped so far because loss or gradient was not finite or too large.
    pub skipped: u64,
}

impl<O: Objective> Trainer<O> {
    /// Skipped steps in a row after which a run gives up.
    const MAX_SKIPPED_IN_A_ROW: u64 = 20;

    /// An untrained objective, with parameters drawn from the seed and their names.
    ///
    /// `data` identifies what it will be trained on, such as
    /// [`LatentDataset::sha256`](crate::LatentDataset::sha256): a checkpoint is resumed with that data alone.
    ///
    /// # Errors
    /// [`TrainError`] when settings or sizes make no run.
    pub fn new<E: Into<TrainError>>(
        cfg: TrainConfig,
        data: &str,
        device: &Device,
        build: impl FnOnce(VarBuilder) -> Result<O, E>,
    ) -> Result<Self, TrainError> {
        cfg.validate()?;
        let (objective, parameters) =
            Parameters::create(cfg.seed, cfg.precision.dtype(), device, build).map_err(Into::into)?;
        let states = parameters.iter().map(|(_, var)| ParameterState::new(values(var)?, &cfg));
        let states = states.collect::<Result<_, TrainError>>()?;
        let (device, data) = (device.clone(), data.to_owned());
        let counters = Counters { step: 0, skipped: 0, skipped_in_a_row: 0 };
        Ok(Self { cfg, objective, parameters, states, device, counters, data })
    }

    /// Starts from given weights instead of random ones, averages included: fine-tuning. Parameters that
    /// are not among them, such as another projection's, stay random.
    ///
    /// # Errors
    /// [`TrainError::Weights`] after the first step, or when a weight has no parameter of its name and shape.
    pub fn start_from(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        let wrong = |problem: String| TrainError::Weights { problem };
        if self.counters.step > 0 {
            return Err(wrong(format!("the run has taken {} steps already", self.counters.step)));
        }
        let shapes: BTreeMap<&str, &[usize]> = self.parameters.iter().map(|it| (it.0, it.1.dims())).collect();
        for (name, weight) in weights {
            let expected = shapes.get(name.as_str());
            if expected.is_none_or(|it| *it != weight.dims()) {
                return Err(wrong(format!("{name}: expected shape {expected:?}, got {:?}", weight.dims())));
            }
        }
        for ((name, var), state) in self.parameters.iter().zip(&mut self.states) {
            let Some(weight) = weights.get(name) else { continue };
            let weight = weight.to_device(&self.device)?.to_dtype(DType::F32)?;
            var.set(&weight.to_dtype(var.dtype())?)?;
            *state = ParameterState::new(values(&weight)?, &self.cfg)?;
        }
        Ok(())
    }

    /// Takes one step on the batches that `batch` returns, one for each range of positions it is asked
    /// for: positions count images from the beginning of the run. Without micro-batches it is asked once.
    ///
    /// A loss or gradient that is not finite, or a gradient of norm 1e18 or more, changes neither weights
    /// nor averages; the step counts as skipped.
    ///
    /// # Errors
    /// What `batch` returns; [`TrainError::NotFinite`] after 20 skipped steps in a row;
    /// [`TrainError::Data`] when the data does not fit the network; [`TrainError::NoGradient`] when a
    /// parameter takes no part in the loss.
    pub fn step<E: From<TrainError>>(
        &mut self,
        mut batch: impl FnMut(Range<u64>) -> Result<O::Batch, E>,
    ) -> Result<StepReport, E> {
        let mut sums = Gradients::default();
        let (begin, of) = (self.images_seen(), self.cfg.batch_size as u64);
        for first in (0..of).step_by(self.cfg.images_at_once()) {
            let end = of.min(first + self.cfg.images_at_once() as u64);
            let batch = batch(begin + first..begin + end)?;
            let at = StepAt { seed: self.cfg.seed, step: self.counters.step, first };
            let loss = self.objective.loss(&batch, at)?;
            sums.add(&self.parameters, &loss, (end - first) as f64 / of as f64)?;
        }
        Ok(self.take(sums)?)
    }

    /// Whether the configured images have been seen.
    pub fn finished(&self) -> bool {
        self.counters.step >= self.cfg.total_steps()
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.counters.step
    }

    /// Images seen so far.
    pub fn images_seen(&self) -> u64 {
        self.counters.step * self.cfg.batch_size as u64
    }

    /// The run's settings.
    pub fn config(&self) -> &TrainConfig {
        &self.cfg
    }

    /// What is trained, with its parameters as they are now.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// What it is trained on.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The weights as they are now, in f32.
    ///
    /// # Errors
    /// [`TrainError::Candle`] when a tensor cannot be made.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        self.tensors(Part::Weights)
    }

    /// The weights averaged with the configured decay of this number: those to sample with are 0.
    ///
    /// # Errors
    /// [`TrainError::Config`] when there is no such average; [`TrainError::Candle`] when a tensor cannot be
    /// made.
    pub fn averaged_weights(&self, decay: usize) -> Result<BTreeMap<String, Tensor>, TrainError> {
        if decay >= self.cfg.ema_decays.len() {
            return Err(TrainError::Config { name: "ema_decays", expected: "as many as are asked for" });
        }
        self.tensors(Part::Average(decay))
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the place of everything that changes in training; the shapes are the parameters'.
    pub(crate) fn restore(&mut self, saved: Saved) -> Result<(), TrainError> {
        for ((_, var), weight) in self.parameters.iter().zip(&saved.weights) {
            var.set(&weight.to_dtype(var.dtype())?)?;
        }
        (self.counters, self.states) = (saved.counters, saved.states);
        Ok(())
    }

    /// One tensor a parameter, in f32.
    pub(crate) fn tensors(&self, part: Part) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let named = self.parameters.iter().zip(&self.states).map(|((name, var), state)| {
            let values = match (part, &state.master) {
                (Part::Weights, None) => return Ok((name.to_owned(), var.as_tensor().clone())),
                (Part::Weights, Some(master)) => master,
                (Part::FirstMoments, _) => &state.moments.first,
                (Part::SecondMoments, _) => &state.moments.second,
                (Part::Average(i), _) => &state.averages[i],
            };
            Ok((name.to_owned(), Tensor::from_slice(values, var.shape(), &self.device)?))
        });
        named.collect()
    }

    /// Moves the parameters, or skips the step.
    fn take(&mut self, sums: Gradients) -> Result<StepReport, TrainError> {
        let begin = self.images_seen();
        self.counters.step += 1;
        let images_seen = self.images_seen();
        let lr = self.cfg.lr.lr(begin..images_seen, self.cfg.total_images);
        let grad_norm = sums.norm()?;
        if is_usable(sums.loss, grad_norm) {
            self.counters.skipped_in_a_row = 0;
            let step = self.counters.step - self.counters.skipped;
            let update = Update { adamw: &self.cfg.adamw, decays: &self.cfg.ema_decays, lr, step };
            let vars: Vec<_> = self.parameters.iter().map(|it| it.1).collect();
            let all = vars.par_iter().zip(&mut self.states).zip(&sums.gradients);
            all.try_for_each(|((var, state), gradient)| update_parameter(var, gradient, state, &update))?;
        } else {
            self.counters.skipped += 1;
            self.counters.skipped_in_a_row += 1;
        }
        let Counters { step, skipped, skipped_in_a_row } = self.counters;
        if skipped_in_a_row >= Self::MAX_SKIPPED_IN_A_ROW {
            return Err(TrainError::NotFinite { count: skipped_in_a_row, step });
        }
        Ok(StepReport { step, images_seen, loss: sums.loss, parts: sums.parts, grad_norm, lr, skipped })
    }
}

impl ParameterState {
    pub(crate) fn new(values: Vec<f32>, cfg: &TrainConfig) -> Result<Self, TrainError> {
        Ok(Self {
            moments: Moments::zeros(values.len()),
            averages: vec![values.clone(); cfg.ema_decays.len()],
            master: (cfg.precision != Precision::F32).then_some(values),
        })
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    pub(crate) step: u64,
    pub(crate) skipped: u64,
    pub(crate) skipped_in_a_row: u64,
}

impl Counters {
    /// Whether a run of such batches can stand here.
    pub(crate) fn are_possible(&self, batch_size: usize) -> bool {
        let images = self.step.checked_mul(batch_size as u64);
        images.is_some_and(|it| it <= TrainConfig::MAX_IMAGES + batch_size as u64)
            && self.skipped <= self.step
            && self.skipped_in_a_row <= self.skipped
    }
}

/// Norms from here on are skipped like infinite ones: the square of a gradient has to stay below the
/// largest f32 (3e38), or the second moment is infinite for the rest of the run.
const MAX_GRAD_NORM: f64 = 1e18;

/// Whether a step can be taken; a norm that is no number is not below the limit either.
fn is_usable(loss: f64, grad_norm: f64) -> bool {
    loss.is_finite() && grad_norm < MAX_GRAD_NORM
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, TrainError> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::{AdamWConfig, adamw_step};

    #[test]
    fn the_largest_gradient_leaves_finite_moments() {
        assert!(is_usable(1.0, 0.0) && is_usable(1.0, 9.9e17));
        for (loss, grad_norm) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (1.0, 1e18)] {
            assert!(!is_usable(loss, grad_norm), "{loss}, {grad_norm}");
        }
        let (mut param, mut moments) = ([0.0], Moments::zeros(1));
        for step in 1..1000 {
            adamw_step(&mut param, &[9.9e17], &mut moments, &AdamWConfig::PAPER, 1e-4, step);
        }
        assert!(param[0].is_finite() && moments.second[0].is_finite(), "{param:?}, {moments:?}");
    }
}
