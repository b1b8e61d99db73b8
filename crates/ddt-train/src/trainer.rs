//! Trainer: a run in memory, and the step that updates parameters, optimiser and averages.

use std::{collections::BTreeMap, error::Error, ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt_dist::{Alone, Group, RankFailed, tree};
use rayon::prelude::*;

use crate::{
    config::TrainConfig,
    error::TrainError,
    objective::{Gradients, Objective, Parameters, StepAt},
    optimiser::{ParameterState, Update, update_parameter},
    ranks::Ranks,
};

/// A run in memory: an objective, its parameters, their optimiser state and averages.
///
/// Several ranks may share a run, each in its own process: see [`Trainer::in_group`].
#[derive(Debug)]
pub struct Trainer<O> {
    cfg: TrainConfig,
    objective: O,
    parameters: Parameters,
    ranks: Ranks,
    /// Of the own parameters.
    states: Vec<ParameterState>,
    device: Device,
    counters: Counters,
    data: String,
}

/// The parts of a run that have a file each in a checkpoint, with a tensor per parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Weights,
    FirstMoments,
    SecondMoments,
    /// Number of its decay.
    Average(usize),
}

impl Part {
    /// The part's numbers of one parameter; weights are not among its state.
    fn of(self, state: &ParameterState) -> Option<&[f32]> {
        match self {
            Self::Weights => None,
            Self::FirstMoments => Some(&state.moments.first),
            Self::SecondMoments => Some(&state.moments.second),
            Self::Average(i) => state.averages.get(i).map(Vec::as_slice),
        }
    }
}

/// Everything that changes in training.
pub(crate) struct Saved {
    pub(crate) counters: Counters,
    /// In f32, in the order of the parameters.
    pub(crate) weights: Vec<Tensor>,
    /// Of the own parameters.
    pub(crate) states: Vec<ParameterState>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// Images seen so far.
    pub images_seen: u64,
    /// Loss of this step's batch, before the update.
    pub loss: f64,
    /// Parts of the loss, if it has any.
    pub parts: Vec<(&'static str, f64)>,
    /// Euclidean norm of the gradient of all parameters.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Steps skipped so far because the loss or gradient was not finite or too large.
    pub skipped: u64,
}

impl StepReport {
    /// The line of a run's log: only what the step decides and no time of day, so that it is the same
    /// wherever the run was resumed.
    pub fn record(&self) -> serde_json::Value {
        let mut record = serde_json::json!({
            "step": self.step, "images_seen": self.images_seen, "loss": self.loss,
            "grad_norm": self.grad_norm, "lr": self.lr, "skipped": self.skipped,
        });
        for (name, part) in &self.parts {
            record[format!("{name}_loss")] = (*part).into();
        }
        record
    }
}

impl<O: Objective> Trainer<O> {
    /// Skipped steps in a row that end a run.
    const MAX_SKIPPED_IN_A_ROW: u64 = 20;

    /// An untrained objective, its parameters initialised from the seed and their names.
    ///
    /// `data` identifies the training data, such as [`LatentDataset::sha256`](crate::LatentDataset::sha256):
    /// a checkpoint is only resumed with the same data.
    ///
    /// # Errors
    /// [`TrainError`] when settings or sizes make no run.
    pub fn new<E: Into<TrainError>>(
        cfg: TrainConfig,
        data: &str,
        device: &Device,
        build: impl FnOnce(VarBuilder) -> Result<O, E>,
    ) -> Result<Self, TrainError> {
        Self::in_group(Arc::new(Alone), cfg, data, device, build)
    }

    /// [`new`](Self::new) as one of several ranks, which make the same calls with the same settings and data, and
    /// compute the same bits as one.
    ///
    /// Each rank computes some of a step's micro-batches, and has the optimiser state and averages of some
    /// parameters; weights are whole on every rank. Methods that say so are for all ranks to call together.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`TrainError::Group`] unless the number of ranks is a power of two that divides the
    /// number of micro-batches.
    pub fn in_group<E: Into<TrainError>>(
        group: Arc<dyn Group>,
        cfg: TrainConfig,
        data: &str,
        device: &Device,
        build: impl FnOnce(VarBuilder) -> Result<O, E>,
    ) -> Result<Self, TrainError> {
        cfg.validate()?;
        let (objective, parameters) =
            Parameters::create(cfg.seed, cfg.precision.dtype(), device, build).map_err(Into::into)?;
        let ranks = Ranks::new(group, &parameters, &cfg)?;
        let own = parameters.iter().skip(ranks.own().start).take(ranks.own().len());
        let states = own.map(|(_, var)| Ok(ParameterState::new(values(var)?, &cfg)));
        let states = states.collect::<Result<_, TrainError>>()?;
        let (device, data) = (device.clone(), data.to_owned());
        let counters = Counters { step: 0, skipped: 0, skipped_in_a_row: 0 };
        Ok(Self { cfg, objective, parameters, ranks, states, device, counters, data })
    }

    /// Starts from given weights instead of random ones, averages included: fine-tuning. Parameters that
    /// are not among them, such as a new projection head's, keep their random values.
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
            match shapes.get(name.as_str()) {
                Some(shape) if *shape == weight.dims() => {}
                Some(shape) => {
                    return Err(wrong(format!("{name}: expected shape {shape:?}, got {:?}", weight.dims())));
                }
                None => return Err(wrong(format!("{name}: the network has no parameter of this name"))),
            }
        }
        let own = self.ranks.own();
        for (at, (name, var)) in self.parameters.iter().enumerate() {
            let Some(weight) = weights.get(name) else { continue };
            let weight = weight.to_device(&self.device)?.to_dtype(DType::F32)?;
            var.set(&weight)?;
            if own.contains(&at) {
                self.states[at - own.start] = ParameterState::new(values(&weight)?, &self.cfg);
            }
        }
        Ok(())
    }

    /// Takes one step. `batch` returns the batch of a range of positions, which count images from the beginning
    /// of the run; without micro-batches it is called once. All ranks call this together, and each is asked for its
    /// own micro-batches.
    ///
    /// A loss or gradient that is not finite, or a gradient of norm 1e18 or more, changes neither weights
    /// nor averages; the step counts as skipped.
    ///
    /// # Errors
    /// Those of `batch`; [`TrainError::NotFinite`] after 20 skipped steps in a row; [`TrainError::Data`] when
    /// the data does not fit the network; [`TrainError::NoGradient`] when a parameter takes no part in the
    /// loss. Of several ranks all return [`TrainError::Rank`] when one fails.
    pub fn step<E: Error + From<TrainError>>(
        &mut self,
        mut batch: impl FnMut(Range<u64>) -> Result<O::Batch, E>,
    ) -> Result<StepReport, E> {
        let (begin, of) = (self.images_seen(), self.cfg.batch_size as u64);
        let mut leaf = |micro_batch: usize| {
            let images = self.cfg.images_of(micro_batch);
            let batch = batch(begin + images.start..begin + images.end)?;
            let at = StepAt { seed: self.cfg.seed, step: self.counters.step, first: images.start };
            let loss = self.objective.loss(&batch, at)?;
            let share = (images.end - images.start) as f64 / of as f64;
            Ok::<_, E>(Gradients::of(&self.parameters, &loss, share)?)
        };
        let own = tree(self.ranks.micro_batches(), &mut leaf, &mut |a, b| Ok(a.plus(b)?));
        let (sums, culprit) = self.ranks.meet(own)?;
        Ok(self.apply(sums, culprit)?)
    }

    /// Positions in the run of the images of the next step that this rank computes.
    pub(crate) fn own_images(&self) -> Range<u64> {
        let (run, begin) = (self.ranks.micro_batches(), self.images_seen());
        let (first, last) = (self.cfg.images_of(run.start), self.cfg.images_of(run.end - 1));
        begin + first.start..begin + last.end
    }

    /// The ranks that share the run.
    pub fn group(&self) -> &Arc<dyn Group> {
        self.ranks.group()
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

    /// The objective, with its parameters as they are now.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// Identity of the training data.
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

    /// The weights averaged with the configured decay of this number; 0 is the one to sample with. All ranks call
    /// this together.
    ///
    /// # Errors
    /// [`TrainError::Setting`] when there is no such average; [`TrainError::Candle`] when a tensor cannot be
    /// made.
    pub fn averaged_weights(&self, decay: usize) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let decays = self.cfg.ema_decays.len();
        if decay >= decays {
            return Err(TrainError::setting("ema_decays", format!("an average below {decays}"), decay));
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

    /// Replaces everything that changes in training; the shapes are the parameters'.
    pub(crate) fn restore(&mut self, saved: Saved) -> Result<(), TrainError> {
        for ((_, var), weight) in self.parameters.iter().zip(&saved.weights) {
            var.set(weight)?;
        }
        (self.counters, self.states) = (saved.counters, saved.states);
        Ok(())
    }

    pub(crate) fn own_parameters(&self) -> Range<usize> {
        self.ranks.own()
    }

    /// A tensor per parameter, in f32. All ranks call this together.
    pub(crate) fn tensors(&self, part: Part) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let names = self.parameters.iter().map(|it| it.0.to_owned());
        if part == Part::Weights {
            return Ok(names.zip(self.parameters.iter().map(|it| it.1.as_tensor().clone())).collect());
        }
        let own: Vec<&[f32]> = self.states.iter().filter_map(|it| part.of(it)).collect();
        Ok(names.zip(self.ranks.gathered(&self.parameters, &own)?).collect())
    }

    /// Updates the parameters, or skips the step.
    fn apply(&mut self, sums: Gradients, culprit: usize) -> Result<StepReport, TrainError> {
        let begin = self.images_seen();
        self.counters.step += 1;
        let images_seen = self.images_seen();
        let lr = self.cfg.lr.lr(begin..images_seen, self.cfg.total_images);
        let Gradients { loss, parts, gradients } = sums;
        let summed = self.ranks.sum(gradients)?;
        let grad_norm = self.ranks.norm(&summed)?;
        if is_usable(loss, grad_norm) {
            self.counters.skipped_in_a_row = 0;
            let scale = self.cfg.clip_norm.map_or(1.0, |limit| (limit / grad_norm).min(1.0));
            let step = self.counters.step - self.counters.skipped;
            let update = Update { adamw: &self.cfg.adamw, decays: &self.cfg.ema_decays, lr, step };
            let (ranks, vars) = (&self.ranks, self.parameters.iter().map(|it| it.1).collect::<Vec<_>>());
            ranks.own().into_par_iter().zip(&mut self.states).try_for_each(|(at, state)| {
                Ok::<_, TrainError>(ranks.with_gradient(&summed, at, |gradient| {
                    if scale == 1.0 {
                        return update_parameter(vars[at], gradient, state, &update);
                    }
                    let scaled: Vec<f32> =
                        gradient.iter().map(|it| (f64::from(*it) * scale) as f32).collect();
                    update_parameter(vars[at], &scaled, state, &update)
                })??)
            })?;
            ranks.share(&self.parameters, summed)?;
        } else {
            self.counters.skipped += 1;
            self.counters.skipped_in_a_row += 1;
        }
        let Counters { step, skipped, skipped_in_a_row } = self.counters;
        if skipped_in_a_row >= Self::MAX_SKIPPED_IN_A_ROW {
            let error = TrainError::NotFinite { count: skipped_in_a_row, step };
            return Err(match self.group().size() {
                1 => error,
                // The same on all, as any failure of a rank.
                _ => RankFailed { rank: culprit, cause: error.to_string(), lost: false }.into(),
            });
        }
        Ok(StepReport { step, images_seen, loss, parts, grad_norm, lr, skipped })
    }
}

/// Progress of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    pub(crate) step: u64,
    pub(crate) skipped: u64,
    pub(crate) skipped_in_a_row: u64,
}

impl Counters {
    /// Whether a run of such batches can have this progress.
    pub(crate) fn are_possible(&self, batch_size: usize) -> bool {
        let images = self.step.checked_mul(batch_size as u64);
        images.is_some_and(|it| it <= TrainConfig::MAX_IMAGES + batch_size as u64)
            && self.skipped <= self.step
            && self.skipped_in_a_row <= self.skipped
    }
}

/// Norms from here on are skipped like infinite ones: the square of a gradient must stay below the largest
/// f32 (3e38), or the second moment is infinite for the rest of the run.
const MAX_GRAD_NORM: f64 = 1e18;

/// Whether a step can be taken; a NaN is not below the limit either.
fn is_usable(loss: f64, grad_norm: f64) -> bool {
    loss.is_finite() && grad_norm < MAX_GRAD_NORM
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, TrainError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::AdamWConfig,
        optimiser::{Moments, adamw_step},
    };

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
