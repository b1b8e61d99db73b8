//! Errors, tolerances and the report.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// How far an output may be from the fixture's.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tolerance {
    /// Root mean square of the error over that of the fixture.
    RelativeRms(f64),
    /// Largest error.
    Absolute(f64),
    /// Nothing.
    Exact,
}

/// One output tensor, compared.
#[derive(Debug)]
pub(crate) struct Comparison {
    name: String,
    relative_rms: f64,
    largest: f64,
    ok: bool,
}

impl Comparison {
    /// Compares two tensors of any dtype.
    pub(crate) fn tensors(name: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<Self> {
        ensure!(
            got.dims() == want.dims(),
            "{name} has shape {:?}, the fixture's {:?}",
            got.dims(),
            want.dims()
        );
        let list =
            |it: &Tensor| -> Result<Vec<f64>> { Ok(it.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
        Self::numbers(name, &list(got)?, &list(want)?, tolerance)
    }

    /// Compares two lists of numbers.
    pub(crate) fn numbers(name: &str, got: &[f64], want: &[f64], tolerance: Tolerance) -> Result<Self> {
        ensure!(got.len() == want.len(), "{name} has {} numbers, the fixture {}", got.len(), want.len());
        let errors = || got.iter().zip(want).map(|(g, w)| g - w);
        let square: f64 = errors().map(|it| it * it).sum();
        let scale: f64 = want.iter().map(|it| it * it).sum();
        let relative_rms = if square == 0.0 { 0.0 } else { (square / scale).sqrt() };
        // `max` would drop a NaN; a NaN is the largest error there is.
        let largest = errors().map(f64::abs).fold(0.0, |a: f64, b| if a.is_nan() || b <= a { a } else { b });
        let ok = match tolerance {
            Tolerance::RelativeRms(limit) => relative_rms <= limit,
            Tolerance::Absolute(limit) => largest <= limit,
            Tolerance::Exact => largest == 0.0,
        };
        Ok(Self { name: name.to_owned(), relative_rms, largest, ok })
    }
}

/// Prints lines and counts them.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Report {
    pub(crate) fn add(&mut self, file: &str, it: &Comparison) {
        let verdict = if it.ok { "ok" } else { "FAIL" };
        println!("{file} {} {:.2e} {:.2e} {verdict}", it.name, it.relative_rms, it.largest);
        if it.ok {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    pub(crate) fn fail(&mut self, file: &str, reason: &str) {
        println!("{file} - - - FAIL {reason}");
        self.failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_nans_are_seen() {
        let check =
            |got: &[f64], want: &[f64], tolerance| Comparison::numbers("x", got, want, tolerance).unwrap();
        assert!(check(&[1.0, 2.0], &[1.0, 2.0], Tolerance::Exact).ok);
        assert!(!check(&[1.0, 2.1], &[1.0, 2.0], Tolerance::RelativeRms(1e-2)).ok);
        assert!(check(&[1.0, 2.1], &[1.0, 2.0], Tolerance::RelativeRms(1e-1)).ok);
        for tolerance in [Tolerance::Exact, Tolerance::Absolute(9.0), Tolerance::RelativeRms(9.0)] {
            assert!(!check(&[f64::NAN, 2.0], &[1.0, 2.0], tolerance).ok);
            assert!(!check(&[1.0, f64::INFINITY], &[1.0, 2.0], tolerance).ok);
        }
        assert!(Comparison::numbers("x", &[1.0], &[], Tolerance::Exact).is_err());
    }
}
