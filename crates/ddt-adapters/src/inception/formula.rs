//! Weights that follow from their names alone, so that a network can be compared and timed without its file.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// Answers any name of Inception's: uniform numbers hashed from the name and the element's index, scaled by what the
/// name says the tensor is, so that activations keep their size.
pub(super) fn weights() -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Formula), DType::F32, Device::Cpu)
}

struct Formula;

impl SimpleBackend for Formula {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let fan_in: usize = shape.dims().iter().skip(1).product();
        let spread = (6.0 / fan_in as f64).sqrt();
        let scaled = |u: f64| match name {
            _ if name.ends_with("running_var") => 1.0 + 0.2 * u,
            _ if name.ends_with("bn.weight") => 1.0 + 0.1 * u,
            _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.1 * u,
            _ => spread * u,
        };
        let seed = fnv1a(name);
        let values = (0..shape.elem_count() as u64).map(|i| scaled(uniform(seed, i)) as f32).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("expected a shape with the name {name}, got none")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn fnv1a(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325, step)
}

/// The element of index `i`, in [-1, 1).
fn uniform(seed: u64, i: u64) -> f64 {
    let z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}
