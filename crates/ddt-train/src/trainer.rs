//! One network in training.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddt_model::{Ddt, DdtConfig};
use rayon::prelude::*;

use crate::{
    adamw::{Moments, adamw_step},
    average::average_step,
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
    step: u64,
    skipped: u64,
    skipped_in_a_row: u64,
}

/// What training keeps beside a parameter, in f32; `averages` in the order of the configured decays.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParameterState {
    pub(crate) moments: Moments,
    pub(crate) averages: Vec<Vec<f32>>,
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
    /// Steps skipped so far because loss or gradient was not finite.
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
        Ok(Self { cfg, network, parameters, states, device, step: 0, skipped: 0, skipped_in_a_row: 0 })
    }

    /// Takes one step on the next images of `data`.
    ///
    /// A loss or gradient that is not finite changes neither weights nor averages; the step counts as
    /// skipped.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] after 20 skipped steps in a row; [`TrainError::Data`] when the data
    /// does not fit the network.
    pub fn step(&mut self, data: &LatentDataset) -> Result<StepReport, TrainError> {
        self.check(data)?;
        let (cfg, batch_size) = (&self.cfg, self.cfg.batch_size as u64);
        let batch = data.training_batch(cfg.seed, self.step * batch_size, cfg.batch_size, &self.device)?;
        let noisy = NoisyBatch::draw(cfg, self.network.config().num_classes, &batch, self.step)?;
        let loss = noisy.loss(&self.network)?;
        let gradients = loss.backward()?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let gradients: Vec<Vec<f32>> = self
            .parameters
            .iter()
            .map(|(_, var)| match gradients.get(var) {
                Some(gradient) => values(gradient),
                None => Ok(vec![0.0; var.elem_count()]),
            })
            .collect::<Result<_, _>>()?;
        self.step += 1;
        let images_seen = self.step * batch_size;
        let lr = self.cfg.lr.lr(images_seen, self.cfg.total_images);
        let grad_norm = norm(&gradients);
        if loss.is_finite() && grad_norm.is_finite() {
            self.skipped_in_a_row = 0;
            self.update(&gradients, lr)?;
        } else {
            self.skipped += 1;
            self.skipped_in_a_row += 1;
            if self.skipped_in_a_row >= Self::MAX_SKIPPED_IN_A_ROW {
                return Err(TrainError::NotFinite { count: self.skipped_in_a_row, step: self.step });
            }
        }
        Ok(StepReport { step: self.step, images_seen, loss, grad_norm, lr, skipped: self.skipped })
    }

    /// Whether the configured images have been seen.
    pub fn finished(&self) -> bool {
        self.step >= self.cfg.total_steps()
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Images seen so far.
    pub fn images_seen(&self) -> u64 {
        self.step * self.cfg.batch_size as u64
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
    pub fn averaged_weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        self.tensors(|it| &it.averages[0])
    }

    /// A network with the averaged weights.
    pub fn averaged_network(&self) -> Result<Ddt, TrainError> {
        let weights = self.averaged_weights()?.into_iter().collect();
        let vb = candle_nn::VarBuilder::from_tensors(weights, DType::F32, &self.device);
        Ok(Ddt::new(self.network.config(), vb)?)
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { step: self.step, skipped: self.skipped, skipped_in_a_row: self.skipped_in_a_row }
    }

    pub(crate) fn restore(&mut self, counters: Counters, states: Vec<ParameterState>) {
        self.states = states;
        let Counters { step, skipped, skipped_in_a_row } = counters;
        (self.step, self.skipped, self.skipped_in_a_row) = (step, skipped, skipped_in_a_row);
    }

    /// One tensor a parameter, of what `part` picks from its state.
    pub(crate) fn tensors(
        &self,
        part: impl Fn(&ParameterState) -> &Vec<f32>,
    ) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let named = self.parameters.iter().zip(&self.states).map(|((name, var), state)| {
            let tensor = Tensor::from_slice(part(state), var.shape(), &self.device)?;
            Ok((name.to_owned(), tensor))
        });
        named.collect()
    }

    fn update(&mut self, gradients: &[Vec<f32>], lr: f64) -> Result<(), TrainError> {
        let (cfg, step) = (&self.cfg, self.step - self.skipped);
        let vars: Vec<_> = self.parameters.iter().map(|(_, var)| var).collect();
        vars.par_iter().zip(&mut self.states).zip(gradients).try_for_each(|((var, state), gradient)| {
            let mut param = values(var)?;
            adamw_step(&mut param, gradient, &mut state.moments, &cfg.adamw, lr, step);
            for (average, decay) in state.averages.iter_mut().zip(&cfg.ema_decays) {
                average_step(average, &param, *decay);
            }
            var.set(&Tensor::from_vec(param, var.shape(), var.device())?)?;
            Ok(())
        })
    }

    fn check(&self, data: &LatentDataset) -> Result<(), TrainError> {
        let (sizes, (c, h, w)) = (self.network.config(), data.shape());
        if c == sizes.in_channels && (data.max_label() as usize) < sizes.num_classes {
            return Ok(());
        }
        Err(TrainError::Data {
            expected: format!("{} channels and labels below {}", sizes.in_channels, sizes.num_classes),
            got: format!("images of {:?} with labels up to {}", (c, h, w), data.max_label()),
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

fn values(tensor: &Tensor) -> Result<Vec<f32>, TrainError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Summed in f64, a parameter at a time, in their order.
fn norm(gradients: &[Vec<f32>]) -> f64 {
    let square = |it: &Vec<f32>| it.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    let squares: Vec<f64> = gradients.par_iter().map(square).collect();
    squares.iter().sum::<f64>().sqrt()
}
