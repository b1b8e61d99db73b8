//! One network in training.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddt_model::{Ddt, DdtConfig};
use rayon::prelude::*;

use crate::{
    adamw::{Moments, adamw_step},
    average::{average_step, ramped},
    config::TrainConfig,
    data::LatentDataset,
    error::TrainError,
    loss::NoisyBatch,
    parameters::Parameters,
};

/// A network, its optimiser and its averages, after some number of steps.
#[derive(Debug)]
pub struct Trainer {
    cfg: TrainConfig,
    network: Ddt,
    parameters: Parameters,
    states: Vec<ParameterState>,
    device: Device,
    counters: Counters,
    /// SHA-256 of the data that was trained on, from the first step on.
    data: Option<String>,
}

/// What training keeps beside a parameter, in f32; `averages` in the order of the configured decays.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParameterState {
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
    pub(crate) data: Option<String>,
    /// In the order of the parameters, as are the states.
    pub(crate) weights: Vec<Tensor>,
    pub(crate) states: Vec<ParameterState>,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps taken so far, this one included.
    pub step: u64,
    /// Images seen so far.
    pub images_seen: u64,
    /// Flow-matching loss of this step's batch, before the update.
    pub loss: f64,
    /// Euclidean norm of the gradient of all parameters.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Steps skipped so far because loss or gradient was not finite or too large.
    pub skipped: u64,
}

impl Trainer {
    /// Skipped steps in a row after which a run gives up.
    const MAX_SKIPPED_IN_A_ROW: u64 = 20;

    /// An untrained network.
    ///
    /// # Errors
    /// [`TrainError`] when settings or sizes make no run.
    pub fn new(cfg: TrainConfig, sizes: &DdtConfig, device: &Device) -> Result<Self, TrainError> {
        cfg.validate()?;
        let (network, parameters) =
            Parameters::create(cfg.seed, DType::F32, device, |vb| Ddt::new(sizes, vb))?;
        let states = parameters.iter().map(|(_, var)| {
            let values = values(var)?;
            Ok(ParameterState {
                moments: Moments::zeros(values.len()),
                averages: vec![values; cfg.ema_decays.len()],
            })
        });
        let states = states.collect::<Result<_, TrainError>>()?;
        let device = device.clone();
        let counters = Counters { step: 0, skipped: 0, skipped_in_a_row: 0 };
        Ok(Self { cfg, network, parameters, states, device, counters, data: None })
    }

    /// Takes one step on the next images of `data`.
    ///
    /// A loss or gradient that is not finite, or a gradient of norm 1e18 or more, changes neither weights
    /// nor averages; the step counts as skipped.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] after 20 skipped steps in a row; [`TrainError::Data`] when the data
    /// does not fit the network, or is not what earlier steps were taken on; [`TrainError::NoGradient`]
    /// when a parameter takes no part in the loss.
    pub fn step(&mut self, data: &LatentDataset) -> Result<StepReport, TrainError> {
        self.check(data)?;
        let (cfg, step, begin) = (&self.cfg, self.counters.step, self.images_seen());
        let batch = data.training_batch(cfg.seed, begin, cfg.batch_size, &self.device)?;
        let noisy = NoisyBatch::draw(cfg, self.network.config().num_classes, &batch, step)?;
        let loss = noisy.loss(&self.network)?;
        let gradients = loss.backward()?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let gradients: Vec<Vec<f32>> = self
            .parameters
            .iter()
            .map(|(name, var)| match gradients.get(var) {
                Some(gradient) => values(gradient),
                None => Err(TrainError::NoGradient { name: name.to_owned() }),
            })
            .collect::<Result<_, _>>()?;
        self.data.get_or_insert_with(|| data.sha256().to_owned());
        self.counters.step += 1;
        let images_seen = self.images_seen();
        let lr = self.cfg.lr.lr(begin..images_seen, self.cfg.total_images);
        let grad_norm = norm(&gradients);
        if is_usable(loss, grad_norm) {
            self.counters.skipped_in_a_row = 0;
            self.update(&gradients, lr)?;
        } else {
            self.counters.skipped += 1;
            self.counters.skipped_in_a_row += 1;
        }
        let Counters { step, skipped, skipped_in_a_row } = self.counters;
        if skipped_in_a_row >= Self::MAX_SKIPPED_IN_A_ROW {
            return Err(TrainError::NotFinite { count: skipped_in_a_row, step });
        }
        Ok(StepReport { step, images_seen, loss, grad_norm, lr, skipped })
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

    /// The network as it is now, with trainable weights.
    pub fn network(&self) -> &Ddt {
        &self.network
    }

    /// The weights averaged with the first configured decay: those to sample with.
    ///
    /// # Errors
    /// [`TrainError::Candle`] when a tensor cannot be made.
    pub fn averaged_weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        self.tensors(Part::Average(0))
    }

    /// A network with the averaged weights.
    ///
    /// # Errors
    /// [`TrainError::Candle`] when a tensor cannot be made.
    pub fn averaged_network(&self) -> Result<Ddt, TrainError> {
        let weights = self.averaged_weights()?.into_iter().collect();
        let vb = candle_nn::VarBuilder::from_tensors(weights, DType::F32, &self.device);
        Ok(Ddt::new(self.network.config(), vb)?)
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

    /// SHA-256 of the data that was trained on; `None` before the first step.
    pub(crate) fn data(&self) -> Option<&str> {
        self.data.as_deref()
    }

    /// Takes the place of everything that changes in training; the shapes are the parameters'.
    pub(crate) fn restore(&mut self, saved: Saved) -> Result<(), TrainError> {
        for ((_, var), weight) in self.parameters.iter().zip(&saved.weights) {
            var.set(weight)?;
        }
        (self.counters, self.data, self.states) = (saved.counters, saved.data, saved.states);
        Ok(())
    }

    /// One tensor a parameter.
    pub(crate) fn tensors(&self, part: Part) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let named = self.parameters.iter().zip(&self.states).map(|((name, var), state)| {
            let values = match part {
                Part::Weights => return Ok((name.to_owned(), var.as_tensor().clone())),
                Part::FirstMoments => &state.moments.first,
                Part::SecondMoments => &state.moments.second,
                Part::Average(i) => &state.averages[i],
            };
            Ok((name.to_owned(), Tensor::from_slice(values, var.shape(), &self.device)?))
        });
        named.collect()
    }

    fn update(&mut self, gradients: &[Vec<f32>], lr: f64) -> Result<(), TrainError> {
        let (cfg, step) = (&self.cfg, self.counters.step - self.counters.skipped);
        let vars: Vec<_> = self.parameters.iter().map(|(_, var)| var).collect();
        vars.par_iter().zip(&mut self.states).zip(gradients).try_for_each(|((var, state), gradient)| {
            let mut param = values(var)?;
            adamw_step(&mut param, gradient, &mut state.moments, &cfg.adamw, lr, step);
            for (average, decay) in state.averages.iter_mut().zip(&cfg.ema_decays) {
                average_step(average, &param, ramped(*decay, step));
            }
            var.set(&Tensor::from_vec(param, var.shape(), var.device())?)?;
            Ok(())
        })
    }

    fn check(&self, data: &LatentDataset) -> Result<(), TrainError> {
        let (sizes, shape) = (self.network.config(), data.shape());
        if shape.0 != sizes.in_channels || data.max_label() as usize >= sizes.num_classes {
            return Err(TrainError::Data {
                expected: format!("{} channels and labels below {}", sizes.in_channels, sizes.num_classes),
                got: format!("images of {shape:?} with labels up to {}", data.max_label()),
            });
        }
        match &self.data {
            Some(expected) if expected != data.sha256() => Err(TrainError::Data {
                expected: format!("the data of the steps before, SHA-256 {expected}"),
                got: format!("SHA-256 {}", data.sha256()),
            }),
            _ => Ok(()),
        }
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
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Summed in f64, a parameter at a time, in their order.
fn norm(gradients: &[Vec<f32>]) -> f64 {
    let square = |it: &Vec<f32>| it.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    let squares: Vec<f64> = gradients.par_iter().map(square).collect();
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::AdamWConfig;

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
