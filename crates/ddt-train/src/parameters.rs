//! Trainable parameters in a fixed order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use ddt_model::SeededInit;

/// Named variables, sorted by name, so that every pass over them has the same order.
#[derive(Debug, Clone)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
}

impl Parameters {
    /// Collects the variables of what `build` makes, each initialised from `seed` and its name.
    ///
    /// # Errors
    /// What `build` returns, and a name that is asked for in two shapes.
    pub fn create<T, E>(
        seed: u64,
        dtype: DType,
        device: &Device,
        build: impl FnOnce(VarBuilder) -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Self), E> {
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

    /// How many variables there are.
    pub fn len(&self) -> usize {
        self.vars.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }
}

struct Collector {
    init: SeededInit,
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl SimpleBackend for Collector {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut vars = self.vars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(var) = vars.get(name) {
            if *var.shape() != shape {
                bail!("{name} is asked for as {shape:?}, but is {:?}", var.shape());
            }
            return Ok(var.as_tensor().clone());
        }
        let var = Var::from_tensor(&self.init.get(shape, name, init, dtype, device)?)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
