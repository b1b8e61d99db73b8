//! A linear layer inside another layer: as it is where it is trained, packed where it is not.

use candle_core::{DType, Result, Tensor};
use ddt_kernels::PackedLinear;

use crate::linear::Linear;

/// A [`Linear`], or what became of one that nothing trains.
#[derive(Debug, Clone)]
pub(crate) enum Projection {
    Plain(Linear),
    Packed(PackedLinear),
}

impl Projection {
    /// Packs the layer if its weights are on the CPU and not variables; the originals go then.
    pub(crate) fn new(linear: Linear) -> Result<Self> {
        if !packs(&linear) {
            return Ok(Self::Plain(linear));
        }
        Ok(Self::Packed(PackedLinear::new(linear.weight(), linear.bias())?))
    }

    /// # Shapes
    /// `xs: (.., in) -> (.., out)`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(linear) => linear.forward(xs),
            Self::Packed(packed) => packed.forward(xs),
        }
    }

    /// The layer, unless it is packed.
    pub(crate) fn plain(&self) -> Option<&Linear> {
        match self {
            Self::Plain(linear) => Some(linear),
            Self::Packed(_) => None,
        }
    }

    /// The layer, if it is packed.
    pub(crate) fn packed(&self) -> Option<&PackedLinear> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(packed) => Some(packed),
        }
    }
}

/// Whether a [`Projection`] of this layer is packed.
pub(crate) fn packs(linear: &Linear) -> bool {
    let (weight, bias) = (linear.weight(), linear.bias());
    let trained = weight.track_op() || bias.is_some_and(Tensor::track_op);
    // Whoever only asks which parameters there are answers with scalars.
    let stands_in = weight.dims().len() != 2;
    let packable = weight.device().is_cpu() && matches!(weight.dtype(), DType::F32 | DType::BF16);
    packable && !trained && !stands_in
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use candle_nn::{Init, VarBuilder, VarMap, var_builder::SimpleBackend};

    use super::*;
    use crate::{AdaLn, AxialRope2d, Block};

    #[test]
    fn a_packed_block_computes_what_the_trained_one_does() -> Result<()> {
        let vars = VarMap::new();
        let trained = Block::new(32, 2, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
        let weights = vars.data().lock().unwrap().clone();
        let weights = weights.into_iter().map(|(name, var): (String, Var)| (name, var.as_detached_tensor()));
        let frozen =
            Block::new(32, 2, VarBuilder::from_tensors(weights.collect(), DType::F32, &Device::Cpu))?;
        let rope = AxialRope2d::new(16)?.table(2, 3, &Device::Cpu)?;
        let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let xs = Tensor::from_vec(values(2 * 6 * 32), (2, 6, 32), &Device::Cpu)?;
        for m in [1, 6] {
            let condition = Tensor::from_vec(values(2 * m * 32), (2, m, 32), &Device::Cpu)?;
            let run = |block: &Block| block.forward(&xs, &block.modulation(&condition)?, &rope);
            let (want, got) = (run(&trained)?, run(&frozen)?);
            assert!(want.track_op() && !got.track_op());
            let worst = (want - got)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(worst < 1e-5, "M = {m}: differs by {worst}");
        }
        Ok(())
    }

    /// Answers with scalars.
    struct Shapes;

    impl SimpleBackend for Shapes {
        fn get(
            &self,
            _: candle_core::Shape,
            _: &str,
            _: Init,
            dtype: DType,
            device: &Device,
        ) -> Result<Tensor> {
            Tensor::zeros((), dtype, device)
        }

        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
            candle_core::bail!("expected a shape with the request for {name}")
        }

        fn contains_tensor(&self, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn scalars_that_stand_for_weights_are_left_alone() -> Result<()> {
        let vb = || VarBuilder::from_backend(Box::new(Shapes), DType::F32, Device::Cpu);
        Block::new(32, 2, vb())?;
        AdaLn::new(32, vb()).map(|_| ())
    }
}
