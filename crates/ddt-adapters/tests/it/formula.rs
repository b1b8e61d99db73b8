//! Inception's fixture weights, a function of each tensor's name.

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

/// Answers any name: uniform numbers hashed from the name and the element's index, scaled by what the name
/// says the tensor is.
struct Formula;

/// A builder that answers with them.
pub(crate) fn builder() -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Formula), DType::F32, Device::Cpu)
}

fn value(name: &str, fan_in: usize, u: f64) -> f32 {
    let value = if name.ends_with("running_var") {
        1.0 + 0.2 * u
    } else if name.ends_with("bn.weight") {
        1.0 + 0.1 * u
    } else if name.ends_with("running_mean") || name.ends_with("bias") {
        0.1 * u
    } else {
        u * (6.0 / fan_in as f64).sqrt()
    };
    value as f32
}

impl SimpleBackend for Formula {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325, fnv);
        let fan_in = shape.dims().iter().skip(1).product();
        let uniform = |i: u64| {
            let z = hash.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        let values = (0..shape.elem_count() as u64).map(|i| value(name, fan_in, uniform(i))).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("expected a shape for {name}, got none")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
