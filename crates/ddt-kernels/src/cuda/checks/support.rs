//! A kernel's result beside the exact one, and random numbers on the device and on the host.

use half::bf16;

use crate::cuda::{Cuda, Element, Float, Result, Slice};

/// A kernel's result compared with f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The kernel, with its element type.
    pub name: String,
    /// The sizes it ran on.
    pub shape: String,
    /// Root mean square of the error, relative to that of the exact result.
    pub error_rms_relative: f64,
    /// The most that is allowed.
    pub tolerance: f64,
}

impl Check {
    /// A result of one rounding to `T`, everything before it in f32.
    pub(super) fn rounded<T: Float>(name: &str, shape: String, got: &[T], want: &[f64]) -> Self {
        let tolerance = if T::NAME == bf16::NAME { 3e-3 } else { 1e-6 };
        Self {
            name: format!("{name} {}", T::NAME),
            shape,
            error_rms_relative: relative_error(got, want),
            tolerance,
        }
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let Self { name, shape, error_rms_relative, tolerance } = self;
        // JSON has no infinity.
        let error = error_rms_relative.min(f64::MAX);
        let passed = self.passed();
        format!(
            "{{\"name\": {name:?}, \"shape\": {shape:?}, \"error_rms_relative\": {error:e}, \
             \"tolerance\": {tolerance:e}, \"passed\": {passed}}}"
        )
    }

    /// Whether the error is within the tolerance.
    pub fn passed(&self) -> bool {
        self.error_rms_relative <= self.tolerance
    }
}

/// Values on the device, and the same values in f64.
pub(super) struct Data<T> {
    pub(super) device: Slice<T>,
    pub(super) exact: Vec<f64>,
}

/// A generator of values about normal in spread, the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// `len` values uniform in `centre` plus or minus `spread`, as `T` has them.
    pub(super) fn data<T: Float>(
        &mut self,
        cuda: &Cuda,
        len: usize,
        (centre, spread): (f32, f32),
    ) -> Result<Data<T>> {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let values: Vec<T> = (0..len).map(|_| T::from_f32(centre + spread * uniform(self.next()))).collect();
        let exact = values.iter().map(|value| f64::from(value.to_f32())).collect();
        Ok(Data { device: cuda.upload(&values)?, exact })
    }
}

/// Memory whose every byte is one: no result that a kernel forgot to write looks right.
pub(super) fn spoilt<T: Element>(cuda: &Cuda, len: usize) -> Result<Slice<T>> {
    cuda.upload(&vec![0xFFu8; len * size_of::<T>()])?.cast()
}

/// Root mean square of the error, relative to that of the exact result; infinite if a result is not finite.
pub(super) fn relative_error<T: Float>(got: &[T], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let squares = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>();
    let error = squares(&mut got.iter().zip(want).map(|(got, want)| f64::from(got.to_f32()) - want));
    let error = (error / squares(&mut want.iter().copied()).max(1e-300)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}
