//! Sources of a network's parameters when there is no file: a seed, or nothing but their shapes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use ddt_blocks::sincos_positions;
use ddt_flow::{CounterNoise, Purpose};

/// The name of the positions in files of SiT's kind, where they are fixed, and of DiT^DH, where they are a parameter.
pub(crate) const POSITIONS: &str = "pos_embed";

/// Makes parameters by their initialisers, each from the seed and its own name only: neither order nor
/// device changes them. DiT^DH's positions, for which there is no initialiser, start as sines and cosines.
#[derive(Debug, Clone, Copy)]
pub struct SeededInit {
    seed: u64,
}

impl SeededInit {
    /// The same seed makes the same parameters.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl SimpleBackend for SeededInit {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let (POSITIONS, &[1, tokens, width]) = (name, shape.dims()) {
            return sincos_positions(width, tokens.isqrt())?.to_dtype(dtype)?.to_device(device);
        }
        let count = shape.elem_count();
        let noise = CounterNoise::new(self.seed, Purpose::Init, 0, fnv1a(name));
        let values: Vec<f32> = match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Uniform { lo, up } => {
                noise.uniform(count).iter().map(|u| (lo + (up - lo) * u) as f32).collect()
            }
            Init::Randn { mean, stdev } => {
                noise.normal(count).iter().map(|n| (mean + stdev * f64::from(*n)) as f32).collect()
            }
            Init::Kaiming { .. } => {
                bail!("{name}: expected a constant, uniform or normal initialiser, got {init:?}")
            }
        };
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// FNV-1a, 64 bit.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Names and shapes of the parameters that `build` asks its builder for, sorted by name.
pub(crate) fn parameter_shapes<T>(
    build: impl FnOnce(VarBuilder) -> Result<T>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let probe = ShapeProbe::default();
    build(VarBuilder::from_backend(Box::new(probe.clone()), DType::F32, Device::Cpu))?;
    let shapes = std::mem::take(&mut *probe.shapes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(shapes)
}

/// Notes every request, and answers it with one number repeated to its shape, which takes no memory.
#[derive(Clone, Default)]
struct ShapeProbe {
    shapes: Arc<Mutex<BTreeMap<String, Vec<usize>>>>,
}

impl SimpleBackend for ShapeProbe {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.insert(name.to_owned(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the request for {name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
