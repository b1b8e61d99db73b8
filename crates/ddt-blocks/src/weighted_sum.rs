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
