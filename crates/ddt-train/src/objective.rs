//! Objectives: what a trainer trains, its parameters in a fixed order, and their gradients.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use ddt_model::SeededInit;

use crate::error::TrainError;

/// A network with its loss: what a [`Trainer`](crate::Trainer) trains.
///
/// The loss must be a pure function of parameters, batch and [`StepAt`], and depend on every parameter.
pub trait Objective {
    /// Some images, with everything the loss needs.
    type Batch;

    /// Everything beside the run's settings that identifies a run: sizes, weights of losses. Checkpoints store
    /// it, and resuming compares it.
    fn identity(&self) -> serde_json::Value;

    /// The mean loss over a batch.
    ///
    /// # Errors
    /// When the batch does not fit the network.
    fn loss(&self, batch: &Self::Batch, at: StepAt) -> Result<Loss, TrainError>;
}

/// Position of a batch in its run: the address of its randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepAt {
    /// Root of all randomness.
    pub seed: u64,
    /// Steps taken before.
    pub step: u64,
    /// Position in the step's batch of the first image of this one.
    pub first: u64,
}

/// A loss and its parts.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The scalar to minimise.
    pub total: Tensor,
    /// Its parts before weighting, scalars with names for the log; empty if there is only one.
    pub parts: Vec<(&'static str, Tensor)>,
}

/// Named variables, sorted by name, so that every pass over them has the same order.
#[derive(Debug, Clone)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
}

impl Parameters {
    /// Collects the variables that `build` asks for, each in f32 and initialised from `seed` and its name. `dtype` is
    /// the one that the network computes in, which its `vb` states.
    ///
    /// # Errors
    /// Those of `build`, and a name requested in two shapes.
    pub fn create<T, E>(
        seed: u64,
        dtype: DType,
        device: &Device,
        build: impl FnOnce(VarBuilder) -> Result<T, E>,
    ) -> Result<(T, Self), E> {
        let vars = Arc::new(Mutex::new(BTreeMap::new()));
        let backend = Collector { init: SeededInit::new(seed), vars: vars.clone() };
        let built = build(VarBuilder::from_backend(Box::new(backend), dtype, device.clone()))?;
        let vars = std::mem::take(&mut *vars.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((built, Self { vars }))
    }

    /// Names and variables in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }
}

struct Collector {
    init: SeededInit,
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl SimpleBackend for Collector {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        _: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut vars = self.vars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(var) = vars.get(name) {
            if *var.shape() != shape {
                bail!("{name}: expected shape {:?} as before, got {shape:?}", var.shape());
            }
            return Ok(var.as_tensor().clone());
        }
        let var = Var::from_tensor(&self.init.get(shape, name, init, DType::F32, device)?)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Mean loss and gradients over a part of a batch, weighted by its share: a term of the sum over the batch.
#[derive(Debug)]
pub(crate) struct Gradients {
    pub(crate) loss: f64,
    pub(crate) parts: Vec<(&'static str, f64)>,
    /// In f32, in the order of the parameters.
    pub(crate) gradients: Vec<Tensor>,
}

impl Gradients {
    /// The gradient of `loss`, the mean over `share` of the batch.
    pub(crate) fn of(parameters: &Parameters, loss: &Loss, share: f64) -> Result<Self, TrainError> {
        let scalar = |it: &Tensor| {
            Ok::<_, TrainError>(share * f64::from(it.to_dtype(DType::F32)?.to_scalar::<f32>()?))
        };
        let mut store = loss.total.backward()?;
        let gradient = |(name, var): (&str, &Var)| {
            let gradient =
                store.remove(var).ok_or_else(|| TrainError::NoGradient { name: name.to_owned() })?;
            let gradient = if share == 1.0 { gradient } else { (gradient * share)? };
            Ok::<_, TrainError>(gradient.contiguous()?)
        };
        let gradients = parameters.iter().map(gradient).collect::<Result<_, _>>()?;
        let parts = loss.parts.iter().map(|(name, part)| Ok((*name, scalar(part)?)));
        Ok(Self { loss: scalar(&loss.total)?, parts: parts.collect::<Result<_, TrainError>>()?, gradients })
    }

    /// The sum of two parts of a batch.
    pub(crate) fn plus(mut self, other: Self) -> Result<Self, TrainError> {
        let numbers: Vec<f64> = self.numbers().zip(other.numbers()).map(|(a, b)| a + b).collect();
        self.set_numbers(&numbers);
        for (sum, it) in self.gradients.iter_mut().zip(other.gradients) {
            *sum = (&*sum + it)?;
        }
        Ok(self)
    }

    /// The loss and its parts.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = f64> {
        [self.loss].into_iter().chain(self.parts.iter().map(|it| it.1))
    }

    /// Replaces the loss and its parts.
    pub(crate) fn set_numbers(&mut self, numbers: &[f64]) {
        let all = [&mut self.loss].into_iter().chain(self.parts.iter_mut().map(|it| &mut it.1));
        all.zip(numbers).for_each(|(old, new)| *old = *new);
    }
}
