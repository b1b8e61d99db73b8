//! A tensor, or a weighted sum of a few that is computed where it is read.

use candle_core::{D, DType, Result, Tensor, bail};
use ddt_kernels::ModulationSource;

/// A tensor, or a weighted sum of up to three tensors of one shape, as a [`ModulationSource`] reads it.
///
/// A forecast of a modulation is a weighted sum of earlier ones. Making the sum copies no elements.
#[derive(Debug, Clone)]
pub struct WeightedSum {
    // Never empty.
    terms: Vec<(Tensor, f64)>,
}

impl From<Tensor> for WeightedSum {
    fn from(tensor: Tensor) -> Self {
        Self { terms: vec![(tensor, 1.0)] }
    }
}

impl WeightedSum {
    /// The sum of each of `sums` times its weight.
    ///
    /// # Errors
    /// When there are none.
    pub fn of<'a>(sums: impl IntoIterator<Item = (&'a Self, f64)>) -> Result<Self> {
        let scaled = |(sum, weight): (&'a Self, f64)| {
            sum.terms.iter().map(move |(tensor, own)| (tensor.clone(), own * weight))
        };
        let terms: Vec<_> = sums.into_iter().flat_map(scaled).collect();
        if terms.is_empty() {
            bail!("expected at least one term of a weighted sum, got none");
        }
        Ok(Self { terms })
    }

    /// The sum as an operation reads it.
    ///
    /// # Errors
    /// When there are more than three terms, or when they differ in shape, dtype or device.
    pub fn source(&self) -> Result<ModulationSource<'_>> {
        let terms: Vec<(&Tensor, f64)> =
            self.terms.iter().map(|(tensor, weight)| (tensor, *weight)).collect();
        ModulationSource::sum(&terms)
    }

    /// The dtype of the terms.
    pub fn dtype(&self) -> DType {
        self.terms[0].0.dtype()
    }

    /// Rows of the batch.
    ///
    /// # Errors
    /// For a scalar.
    pub fn batch(&self) -> Result<usize> {
        self.terms[0].0.dim(0)
    }

    /// The sum for the first `batch` rows.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn narrow_batch(&self, batch: usize) -> Result<Self> {
        self.map(|tensor| tensor.narrow(0, 0, batch))
    }

    /// The columns from `first` on, `width` in number.
    pub(crate) fn columns(&self, first: usize, width: usize) -> Result<Self> {
        self.map(|tensor| tensor.narrow(D::Minus1, first, width))
    }

    /// Columns in number.
    pub(crate) fn width(&self) -> Result<usize> {
        self.terms[0].0.dim(D::Minus1)
    }

    /// Sums of the same weights side by side.
    pub(crate) fn cat(parts: &[Self]) -> Result<Self> {
        let weights = parts[0].terms.iter().enumerate();
        let side_by_side = |(i, (_, weight)): (usize, &(Tensor, f64))| {
            let tensors: Vec<&Tensor> = parts.iter().map(|it| &it.terms[i].0).collect();
            Ok((Tensor::cat(&tensors, D::Minus1)?, *weight))
        };
        Ok(Self { terms: weights.map(side_by_side).collect::<Result<_>>()? })
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let terms = self.terms.iter().map(|(tensor, weight)| Ok((f(tensor)?, *weight)));
        Ok(Self { terms: terms.collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_nn::VarBuilder;

    use super::*;
    use crate::{AxialRope2d, Block, Form, Frozen, Fused, Modulation, Plain, TransformerBlock};

    /// Numbers in -1 to 1 that look random, other ones for another `seed`.
    fn numbers(dims: &[usize], seed: usize) -> Tensor {
        let count = dims.iter().product::<usize>() as f32;
        let start = 1000.0 * seed as f32;
        let angles = Tensor::arange(start, start + count, &Device::Cpu).unwrap();
        (angles * 12.9898).unwrap().sin().unwrap().reshape(dims).unwrap()
    }

    /// A block under a weighted sum of modulations is the block under the modulation of the weighted sum of
    /// conditions: the modulation is affine in the condition, and the weights sum to one.
    fn follows_the_condition<F: Form>() {
        let vb = VarBuilder::from_backend(Box::new(Numbers), DType::F32, Device::Cpu);
        let block = F::block(Block::new(32, 2, vb).unwrap()).unwrap();
        let rope = AxialRope2d::new(16).unwrap().table(2, 3, &Device::Cpu).unwrap();
        let tokens = numbers(&[2, 6, 32], 0);
        let conditions: Vec<Tensor> = (1..4).map(|seed| numbers(&[2, 6, 32], seed)).collect();
        let modulations: Vec<Modulation> =
            conditions.iter().map(|it| block.modulation(it).unwrap()).collect();
        for weights in [vec![1.0], vec![-0.5, 1.5], vec![0.4, -1.3, 1.9]] {
            let mut condition = conditions[0].zeros_like().unwrap();
            for (weight, it) in weights.iter().zip(&conditions) {
                condition = (condition + (it * *weight).unwrap()).unwrap();
            }
            let want = block.forward(&tokens, &block.modulation(&condition).unwrap(), &rope).unwrap();
            let terms: Vec<_> = modulations.iter().zip(weights).collect();
            let sum = Modulation::weighted_sum(&terms).unwrap();
            let got = block.forward(&tokens, &sum, &rope).unwrap();
            let difference = (&got - &want).unwrap().abs().unwrap().max_all().unwrap();
            let scale = want.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5 * scale);
        }
        let four: Vec<_> = modulations.iter().chain(&modulations[..1]).map(|it| (it, 0.25)).collect();
        assert!(block.forward(&tokens, &Modulation::weighted_sum(&four).unwrap(), &rope).is_err());
        assert!(Modulation::weighted_sum(&[]).is_err() && WeightedSum::of([]).is_err());
    }

    /// Parameters of a network that does something.
    struct Numbers;

    impl candle_nn::var_builder::SimpleBackend for Numbers {
        fn get(
            &self,
            shape: candle_core::Shape,
            name: &str,
            _: candle_nn::Init,
            dtype: DType,
            _: &Device,
        ) -> Result<Tensor> {
            (numbers(shape.dims(), name.len()) * 0.3)?.to_dtype(dtype)
        }

        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
            bail!("no shape of {name}")
        }

        fn contains_tensor(&self, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn every_form_of_a_block_reads_a_weighted_sum() {
        follows_the_condition::<Plain>();
        follows_the_condition::<Fused>();
        follows_the_condition::<Frozen>();
    }
}
