//! Errors and how large they may be.

use std::fmt;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// Largest accepted difference of an output from the fixture's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// Root mean square of the error over that of the fixture.
    RelativeRms(f64),
    /// Largest error.
    Absolute(f64),
    /// No error at all.
    Exact,
}

/// Tolerances in f32; docs/PARITY.md lists them with the errors seen.
impl Tolerance {
    /// One call of a network, and projections of its features.
    pub const FORWARD: Self = Self::RelativeRms(1e-5);
    /// The final latent of a sampling run.
    pub const SAMPLE: Self = Self::RelativeRms(1e-4);
    /// A loss and its parts.
    pub const LOSS: Self = Self::RelativeRms(1e-5);
    /// The gradient of one parameter.
    pub const GRADIENT: Self = Self::RelativeRms(1e-4);
    /// Parameters and their average after some steps of the optimiser.
    pub const OPTIMISER: Self = Self::RelativeRms(1e-6);
    /// Latents and pixels of an autoencoder.
    pub const AUTOENCODER: Self = Self::RelativeRms(1e-4);
    /// Features of DINOv2 and Inception.
    pub const FEATURES: Self = Self::RelativeRms(1e-4);
    /// Fréchet distance, Inception Score, precision and recall.
    pub const METRIC: Self = Self::RelativeRms(1e-6);
    /// Similarity of self-conditions.
    pub const SIMILARITY: Self = Self::RelativeRms(1e-9);
    /// Cost of a sharing plan.
    pub const PLAN_COST: Self = Self::Absolute(1e-9);
    /// PyTorch's noise.
    pub const NOISE: Self = Self::Absolute(3e-6);
    /// Mean error of a crop in grey levels: JPEG decoders differ.
    pub const CROP_MEAN: Self = Self::Absolute(1.5);
    /// Largest error of a crop in grey levels.
    pub const CROP: Self = Self::Absolute(24.0);

    /// The same for weights in `dtype`: one rounding is 2⁻¹² in f16 and 2⁻⁹ in bf16, and layers add up.
    pub fn in_dtype(self, dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::RelativeRms(1e-2),
            DType::BF16 => Self::RelativeRms(5e-2),
            _ => self,
        }
    }
}

/// One output, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Name of the output in the fixture.
    pub name: String,
    /// Root mean square of the error over that of the fixture.
    pub relative_rms: f64,
    /// Largest error.
    pub largest: f64,
    /// Largest accepted error.
    pub tolerance: Tolerance,
}

impl Comparison {
    /// Compares two tensors of any dtype.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn tensors(name: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<Self> {
        ensure!(
            got.dims() == want.dims(),
            "{name}: expected the fixture's shape {:?}, got {:?}",
            want.dims(),
            got.dims()
        );
        let list = |it: &Tensor| -> Result<Vec<f64>> {
            Ok(it.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
        };
        Self::numbers(name, &list(got)?, &list(want)?, tolerance)
    }

    /// Compares two lists of numbers.
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn numbers(name: &str, got: &[f64], want: &[f64], tolerance: Tolerance) -> Result<Self> {
        ensure!(got.len() == want.len(), "{name}: expected {} numbers, got {}", want.len(), got.len());
        let errors = || got.iter().zip(want).map(|(g, w)| g - w);
        let square: f64 = errors().map(|it| it * it).sum();
        let scale: f64 = want.iter().map(|it| it * it).sum();
        let relative_rms = if square == 0.0 { 0.0 } else { (square / scale).sqrt() };
        // `max` would drop a NaN; a NaN is the largest error there is.
        let largest = errors().map(f64::abs).fold(0.0, |a: f64, b| if a.is_nan() || b <= a { a } else { b });
        Ok(Self { name: name.to_owned(), relative_rms, largest, tolerance })
    }

    /// Whether the error is within the tolerance; a NaN never is.
    pub fn passed(&self) -> bool {
        match self.tolerance {
            Tolerance::RelativeRms(limit) => self.relative_rms <= limit,
            Tolerance::Absolute(limit) => self.largest <= limit,
            Tolerance::Exact => self.largest == 0.0,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "ok" } else { "FAIL" };
        write!(f, "{} {:.2e} {:.2e} {verdict}", self.name, self.relative_rms, self.largest)
    }
}

/// Root mean square of the error over that of what is wanted, in f64; 0 where they are equal.
///
/// # Errors
/// Shapes that differ.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> Result<f64> {
    Ok(Comparison::tensors("tensor", got, want, Tolerance::Exact)?.relative_rms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_nans_are_seen() {
        let passed = |got: &[f64], want: &[f64], tolerance| {
            Comparison::numbers("x", got, want, tolerance).unwrap().passed()
        };
        assert!(passed(&[1.0, 2.0], &[1.0, 2.0], Tolerance::Exact));
        assert!(!passed(&[1.0, 2.1], &[1.0, 2.0], Tolerance::RelativeRms(1e-2)));
        assert!(passed(&[1.0, 2.1], &[1.0, 2.0], Tolerance::RelativeRms(1e-1)));
        assert!(!passed(&[1.0], &[0.0], Tolerance::RelativeRms(9.0)));
        assert!(passed(&[0.0], &[0.0], Tolerance::RelativeRms(0.0)));
        for tolerance in [Tolerance::Exact, Tolerance::Absolute(9.0), Tolerance::RelativeRms(9.0)] {
            assert!(!passed(&[f64::NAN, 2.0], &[1.0, 2.0], tolerance));
            assert!(!passed(&[1.0, f64::INFINITY], &[1.0, 2.0], tolerance));
        }
        assert!(Comparison::numbers("x", &[1.0], &[], Tolerance::Exact).is_err());
    }
}
