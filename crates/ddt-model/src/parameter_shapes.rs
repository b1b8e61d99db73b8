//! What parameters a network has, without making one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Names and shapes of the parameters that `build` asks its builder for, sorted by name.
pub(crate) fn parameter_shapes<T>(
    build: impl FnOnce(VarBuilder) -> Result<T>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let shapes = Arc::new(Mutex::new(BTreeMap::new()));
    let backend = Recorder { shapes: shapes.clone() };
    build(VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu))?;
    let shapes = shapes.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(shapes.clone())
}

/// Answers every request with a number repeated to its shape, which takes no memory, and remembers it. It is
/// a variable's: layers pack the weights that nothing trains.
struct Recorder {
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for Recorder {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.to_owned(), shape.dims().to_vec());
        Var::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
