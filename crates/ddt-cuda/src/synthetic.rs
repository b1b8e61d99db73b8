//! Synthetic weights, for timing and tests.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Weights with the magnitude of a trained network's, so that nothing in it is zero, saturates or overflows; each
/// follows from the seed and its name.
///
/// ```text
/// uniform in +-1.7 / sqrt(inputs of an output); norms in 1 +- 0.2; biases in +-0.1
/// ```
pub fn synthetic_weights(seed: u64) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Synthetic { seed }), DType::F32, Device::Cpu)
}

struct Synthetic {
    seed: u64,
}

impl SimpleBackend for Synthetic {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let (centre, width) = match shape.dims() {
            [_, inputs @ ..] if !inputs.is_empty() => {
                (0.0, 1.7 / (inputs.iter().product::<usize>() as f32).sqrt())
            }
            _ if name.contains("norm") && !name.ends_with(".bias") => (1.0, 0.2),
            _ => (0.0, 0.1),
        };
        // FNV-1a of the name, then xorshift64*: fast enough for a billion numbers.
        let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ self.seed, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let uniform = std::iter::repeat_with(|| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32;
            centre + width * (bits / (1 << 23) as f32 - 1.0)
        });
        let values: Vec<f32> = uniform.take(shape.elem_count()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape with the name {name}, got none")
    }

    /// Claims to have no tensor: where files differ in a name, the older one is asked for first.
    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}
