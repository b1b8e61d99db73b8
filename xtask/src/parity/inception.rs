//! Inception, on weights that are a formula.

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use ddt_adapters::Inception;

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

const INCEPTION: Tolerance = Tolerance::RelativeRms(1e-4);

/// Features and logits of photos.
pub(crate) fn inception(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let weights = VarBuilder::from_backend(Box::new(Formula), DType::F32, Device::Cpu);
    let got = Inception::new(weights)?.forward(&fixture.tensor("in.image_u8")?)?;
    let compare =
        |name: &str, got: &Tensor| Comparison::tensors(name, got, &fixture.tensor(name)?, INCEPTION);
    Ok(vec![
        compare("out.pool3", &got.pool)?,
        compare("out.spatial7", &got.spatial)?,
        compare("out.logits_unbiased", &got.logits_unbiased)?,
        compare("out.logits", &got.logits)?,
    ])
}

/// Weights that follow from their names alone.
struct Formula;

impl SimpleBackend for Formula {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        _: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
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

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: a formula needs a shape")
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
