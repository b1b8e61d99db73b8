//! Weights under the names and of the shapes that a network asks for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::testing::InMemory;

/// Answers any name with zeros, and keeps them.
#[derive(Clone, Default)]
struct Zeros(Arc<Mutex<BTreeMap<String, Tensor>>>);

/// Zeros under the names and of the shapes that `make` asks for.
pub(crate) fn zeros_of<T>(make: impl FnOnce(VarBuilder) -> Result<T>) -> InMemory {
    let zeros = Zeros::default();
    make(VarBuilder::from_backend(Box::new(zeros.clone()), DType::F32, Device::Cpu)).unwrap();
    let tensors = zeros.0.lock().unwrap().clone();
    InMemory(tensors)
}

impl SimpleBackend for Zeros {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let zeros = Tensor::zeros(shape, dtype, device)?;
        self.0.lock().unwrap().insert(name.to_owned(), zeros.clone());
        Ok(zeros)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("expected a shape for {name}, got none")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
