//! Sources of weights: a name and a shape in, a tensor out.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use crate::{error::GpuError, weights::Weight};

/// Gives the parameter of a published name and shape, in any float type, on the CPU.
pub type WeightSource<'a> = &'a dyn Fn(&str, &[usize]) -> candle_core::Result<Tensor>;

/// Weights that were read, such as by [`DdtFile::weights`](ddt_model::DdtFile::weights).
pub fn from_map(
    map: &BTreeMap<String, Tensor>,
) -> impl Fn(&str, &[usize]) -> candle_core::Result<Tensor> + '_ {
    |name, _| match map.get(name) {
        Some(tensor) => Ok(tensor.clone()),
        None => bail!("expected a weight {name} among {}, got none", map.len()),
    }
}

/// Synthetic weights, for timing and tests, with the magnitude of a trained network's, so that nothing in it is
/// zero, saturates or overflows.
///
/// ```text
/// uniform in ±1.7 / sqrt(inputs of an output); norms in 1 ± 0.2; biases in ±0.1
/// ```
pub fn by_formula(seed: u64) -> impl Fn(&str, &[usize]) -> candle_core::Result<Tensor> {
    move |name, shape| {
        let start = name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let (centre, width) = match shape {
            [_, inputs @ ..] if !inputs.is_empty() => {
                (0.0, 1.7 / (inputs.iter().product::<usize>() as f32).sqrt())
            }
            _ if name.contains("norm") && !name.ends_with(".bias") => (1.0, 0.2),
            _ => (0.0, 0.1),
        };
        let mut state = start;
        let count = shape.iter().product();
        let values: Vec<f32> = std::iter::repeat_with(|| {
            // xorshift64*: fast enough for a billion of them.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32;
            centre + width * (bits / (1 << 23) as f32 - 1.0)
        })
        .take(count)
        .collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// Weights [`by_formula`] for any network that asks a builder for them, such as an autoencoder.
pub fn builder_by_formula(seed: u64) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Formula { seed }), DType::F32, Device::Cpu)
}

/// Answers a network under construction.
struct Formula {
    seed: u64,
}

impl SimpleBackend for Formula {
    fn get(
        &self,
        s: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        by_formula(self.seed)(name, s.dims())?.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        bail!("expected a shape with the name {name}, got none")
    }

    /// Of names that files differ in, the first that is asked for is not there: that is the older one.
    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// Part `index` of a weight, padded, in f32.
pub(crate) fn read_part(
    weight: &Weight,
    index: usize,
    source: WeightSource<'_>,
) -> Result<Vec<f32>, GpuError> {
    let name = &weight.parts[index];
    let mut tensor = source(name, &weight.part_shape)?;
    if tensor.dims() != weight.part_shape {
        let (name, got) = (name.clone(), tensor.dims().to_vec());
        return Err(GpuError::Weight { name, expected: weight.part_shape.clone(), got });
    }
    tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    for (dim, (&have, &want)) in weight.part_shape.iter().zip(&weight.padded).enumerate() {
        if want > have {
            tensor = tensor.pad_with_zeros(dim, 0, want - have)?;
        }
    }
    Ok(tensor.flatten_all()?.to_vec1()?)
}
