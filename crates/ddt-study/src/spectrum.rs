//! Spectra: the power of latents by spatial frequency, and the frequencies that survive noise.

use std::f64::consts::PI;

use candle_core::{DType, Device, Result, Tensor, bail};

/// Mean power of latents in bands of spatial frequency.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Centre (in half-waves across the image) and mean power of each band that has coefficients.
    pub bands: Vec<(f64, f64)>,
}

/// Spectrum of latents, averaged over samples and channels.
///
/// A coefficient's frequency is the length of its two frequencies, in half-waves across a side: 0 is the
/// mean of the image. Bands are one wide, `[f - 1/2, f + 1/2)`.
///
/// # Shapes
/// `latents`: (B, C, H, W) in any float type.
///
/// # Errors
/// Another shape, or no elements.
pub fn latent_spectrum(latents: &Tensor) -> Result<Spectrum> {
    let (b, c, h, w) = latents.dims4()?;
    if b * c * h * w == 0 {
        bail!("expected latents (B, C, H, W) without empty dimensions, got {:?}", latents.dims());
    }
    let rows = latents.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.reshape((b * c, h * w))?;
    let bands = band(h.saturating_sub(1), w.saturating_sub(1)) + 1;
    let (mut power, mut count) = (vec![0.0; bands], vec![0usize; bands]);
    for image in rows.to_vec2::<f64>()? {
        for (at, value) in dct2(&image, h, w).iter().enumerate() {
            let slot = band(at / w, at % w);
            power[slot] += value * value;
            count[slot] += 1;
        }
    }
    let mean = |(f, (power, count)): (usize, (f64, usize))| (f as f64, power / count as f64);
    let filled = power.into_iter().zip(count).enumerate().filter(|(_, (_, count))| *count > 0);
    Ok(Spectrum { bands: filled.map(mean).collect() })
}

/// Band of a coefficient.
fn band(row: usize, column: usize) -> usize {
    ((row * row + column * column) as f64).sqrt().round() as usize
}

/// Highest band of clean data up to which every band exceeds the noise at time `t`.
///
/// ```text
/// t^2 P(f) >= (1 - t)^2
/// ```
///
/// Measures what [`PowerLaw::max_frequency`] predicts, interpolated between bands where the logarithm of the
/// ratio crosses zero. 0 if the noise exceeds even the first band above the mean.
pub fn surviving_frequency(data: &Spectrum, t: f64) -> f64 {
    let ratio = |power: f64| (t * t * power).ln() - ((1.0 - t) * (1.0 - t)).ln();
    let mut last: Option<(f64, f64)> = None;
    for &(f, power) in data.bands.iter().filter(|(f, _)| *f > 0.0) {
        let here = ratio(power);
        if here < 0.0 {
            return match last {
                // Zero of the straight line between the two.
                Some((before, above)) => before + (f - before) * above / (above - here),
                None => 0.0,
            };
        }
        last = Some((f, if here.is_finite() { here } else { f64::MAX }));
    }
    last.map_or(0.0, |(f, _)| f)
}

/// Power law `A f^(-B)` of data by spatial frequency, and what noise leaves of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerLaw {
    /// Power at frequency 1, `A`, where white noise of the path has power 1.
    pub amplitude: f64,
    /// Exponent `B`; about 2 for natural images.
    pub exponent: f64,
}

impl PowerLaw {
    /// Least-squares fit of the logarithms of (frequency, power), ignoring pairs that are not both positive and
    /// finite. `None` with fewer than two different frequencies.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let positive = |&&(f, p): &&(f64, f64)| f > 0.0 && p > 0.0 && f.is_finite() && p.is_finite();
        let logs: Vec<(f64, f64)> = points.iter().filter(positive).map(|(f, p)| (f.ln(), p.ln())).collect();
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / logs.len() as f64;
        let (f_mean, p_mean) = (mean(&|it| it.0), mean(&|it| it.1));
        let spread = mean(&|it| (it.0 - f_mean).powi(2));
        let slope = mean(&|it| (it.0 - f_mean) * (it.1 - p_mean)) / spread;
        let law = Self { amplitude: (p_mean - slope * f_mean).exp(), exponent: -slope };
        (spread > 1e-12 && law.amplitude.is_finite() && law.exponent.is_finite()).then_some(law)
    }

    /// Power at a frequency.
    pub fn power(&self, frequency: f64) -> f64 {
        self.amplitude * frequency.powf(-self.exponent)
    }

    /// Power of `x_t = t data + (1 - t) noise` at a frequency.
    ///
    /// ```text
    /// t^2 A f^(-B) + (1 - t)^2
    /// ```
    pub fn noisy_power(&self, frequency: f64, t: f64) -> f64 {
        t * t * self.power(frequency) + (1.0 - t) * (1.0 - t)
    }

    /// Highest frequency at which the data exceed the noise at time `t`, at most `highest`.
    ///
    /// ```text
    /// f_max(t) = min((A (t / (1 - t))^2)^(1/B), K)
    /// ```
    ///
    /// Equation (1) of arXiv:2504.05741 is the case `A = B = 1`. Data without a positive exponent exceed the
    /// noise at all frequencies or at none.
    pub fn max_frequency(&self, t: f64, highest: f64) -> f64 {
        let ratio = self.amplitude * (t / (1.0 - t)).powi(2);
        if self.exponent > 0.0 {
            return ratio.powf(1.0 / self.exponent).min(highest);
        }
        if ratio >= 1.0 { highest } else { 0.0 }
    }
}

/// Orthonormal two-dimensional DCT-II of a row-major image.
///
/// ```text
/// X[k, l] = c_k c_l sum_ij x[i, j] cos(pi (i + 1/2) k / rows) cos(pi (j + 1/2) l / columns)
/// c_0 = sqrt(1 / n), c_k = sqrt(2 / n) otherwise
/// ```
///
/// The basis of appendix D of arXiv:2504.05741. It keeps the sum of squares, so white noise of power 1
/// has power 1 at every frequency. Cubic in the side, which is little for latents.
///
/// # Shapes
/// `image`: rows x columns numbers -> as many coefficients, row frequency first; empty for any other number.
pub fn dct2(image: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    if rows.checked_mul(columns) != Some(image.len()) || image.is_empty() {
        return Vec::new();
    }
    let (row_basis, column_basis) = (basis(rows), basis(columns));
    // Along each row, then along each column of the result.
    let mut half = vec![0.0; image.len()];
    for (line, out) in image.chunks_exact(columns).zip(half.chunks_exact_mut(columns)) {
        for (wave, slot) in column_basis.chunks_exact(columns).zip(out) {
            *slot = wave.iter().zip(line).map(|(w, x)| w * x).sum();
        }
    }
    let mut whole = vec![0.0; image.len()];
    for (wave, out) in row_basis.chunks_exact(rows).zip(whole.chunks_exact_mut(columns)) {
        for (w, line) in wave.iter().zip(half.chunks_exact(columns)) {
            for (slot, x) in out.iter_mut().zip(line) {
                *slot += w * x;
            }
        }
    }
    whole
}

/// The `n` basis vectors of length `n`, one after the other.
fn basis(n: usize) -> Vec<f64> {
    let size = n as f64;
    let wave = |k: usize| {
        let scale = if k == 0 { (1.0 / size).sqrt() } else { (2.0 / size).sqrt() };
        (0..n).map(move |i| scale * (PI * (i as f64 + 0.5) * k as f64 / size).cos())
    };
    (0..n).flat_map(wave).collect()
}

#[cfg(test)]
mod tests {
    use ddt::flow::{LinearPath, noise_batch};
    use proptest::prelude::*;

    use super::*;

    fn device() -> Device {
        Device::Cpu
    }

    #[test]
    fn white_noise_is_flat_with_power_one() {
        let samples: Vec<u64> = (0..64).collect();
        let noise = noise_batch(0, &samples, (4, 16, 16), &device()).unwrap();
        let spectrum = latent_spectrum(&noise).unwrap();
        assert_eq!(spectrum.bands.len(), 22);
        for (f, power) in &spectrum.bands {
            // A band of few coefficients has (2 / (256 k))^(1/2) of spread.
            assert!((power - 1.0).abs() < 0.3, "{f}: {power}");
        }
    }

    /// Noise shaped to a power law, mixed with white noise: the spectrum is the predicted one at every time,
    /// and so is the frequency at which the two cross.
    #[test]
    fn shaped_noise_has_the_predicted_spectrum_at_every_time() {
        let (side, law) = (16, PowerLaw { amplitude: 6.0, exponent: 2.0 });
        let samples: Vec<u64> = (0..96).collect();
        let white = noise_batch(1, &samples, (4, side, side), &device()).unwrap();
        // The DCT is its own inverse but for the transposed basis: shape the coefficients, then go back.
        let rows = white.to_dtype(DType::F64).unwrap().reshape((384, side * side)).unwrap();
        let mut values = Vec::new();
        for coefficients in rows.to_vec2::<f64>().unwrap() {
            let shaped: Vec<f64> = coefficients
                .iter()
                .enumerate()
                .map(|(at, x)| x * law.power(band(at / side, at % side).max(1) as f64).sqrt())
                .collect();
            values.extend(inverse(&shaped, side));
        }
        let data = Tensor::from_vec(values, white.shape(), &device()).unwrap();
        let clean = latent_spectrum(&data).unwrap();
        let fitted = PowerLaw::fit(&clean.bands).unwrap();
        assert!((fitted.exponent - 2.0).abs() < 0.1, "{fitted:?}");
        let noise =
            noise_batch(2, &samples, (4, side, side), &device()).unwrap().to_dtype(DType::F64).unwrap();
        for t in [0.2, 0.3, 0.5, 0.7] {
            let times = Tensor::full(t, 96, &device()).unwrap();
            let x_t = LinearPath.interpolate(&data, &noise, &times).unwrap();
            for (f, power) in latent_spectrum(&x_t).unwrap().bands.into_iter().skip(1) {
                let expected = law.noisy_power(f, t);
                assert!((power / expected - 1.0).abs() < 0.3, "{t} {f}: {power} {expected}");
            }
            let (read, predicted) = (surviving_frequency(&clean, t), law.max_frequency(t, 21.0));
            // Below the first band nothing can be read.
            let error = if predicted < 1.0 { read } else { read - predicted };
            assert!(error.abs() < 0.15 * predicted.max(2.0), "{t}: {read} {predicted}");
        }
    }

    /// Sums the basis vectors, each found as the transform of a unit coefficient's transpose.
    fn inverse(coefficients: &[f64], side: usize) -> Vec<f64> {
        let mut basis = vec![0.0; side * side]; // row k: basis vector k
        for i in 0..side {
            let mut unit = vec![0.0; side];
            unit[i] = 1.0;
            for (k, value) in dct2(&unit, 1, side).into_iter().enumerate() {
                basis[k * side + i] = value;
            }
        }
        let mut image = vec![0.0; side * side];
        for (at, pixel) in image.iter_mut().enumerate() {
            let (i, j) = (at / side, at % side);
            for (index, c) in coefficients.iter().enumerate() {
                *pixel += c * basis[(index / side) * side + i] * basis[(index % side) * side + j];
            }
        }
        image
    }

    #[test]
    fn the_ends_of_time_and_bad_shapes() {
        let spectrum = Spectrum { bands: vec![(0.0, 9.0), (1.0, 4.0), (2.0, 1.0), (3.0, 0.25)] };
        assert_eq!(surviving_frequency(&spectrum, 0.0), 0.0);
        assert_eq!(surviving_frequency(&spectrum, 1.0), 3.0);
        assert!((surviving_frequency(&spectrum, 0.5) - 2.0).abs() < 1e-12);
        assert_eq!(surviving_frequency(&Spectrum { bands: vec![] }, 0.5), 0.0);
        let empty = Tensor::zeros((1, 0, 2, 2), DType::F32, &device()).unwrap();
        assert!(latent_spectrum(&empty).is_err());
    }

    #[test]
    fn a_fit_finds_the_law_it_was_made_of() {
        let law = PowerLaw { amplitude: 3.0, exponent: 1.7 };
        let mut points: Vec<(f64, f64)> = (1..20).map(|f| (f as f64, law.power(f as f64))).collect();
        points.extend([(0.0, 5.0), (3.0, 0.0), (4.0, f64::NAN)]);
        let found = PowerLaw::fit(&points).unwrap();
        assert!((found.amplitude - 3.0).abs() < 1e-9 && (found.exponent - 1.7).abs() < 1e-9);
        assert_eq!(PowerLaw::fit(&points[..1]), None);
        assert_eq!(PowerLaw::fit(&[]), None);
    }

    #[test]
    fn at_the_crossing_data_and_noise_weigh_the_same() {
        let law = PowerLaw { amplitude: 0.6, exponent: 1.3 };
        for t in [0.1, 0.4, 0.8] {
            let f = law.max_frequency(t, f64::INFINITY);
            assert!((t * t * law.power(f) - (1.0 - t) * (1.0 - t)).abs() < 1e-12, "{t}");
            assert!((law.noisy_power(f, t) - 2.0 * (1.0 - t) * (1.0 - t)).abs() < 1e-12);
        }
        assert_eq!((law.max_frequency(0.0, 8.0), law.max_frequency(1.0, 8.0)), (0.0, 8.0));
    }

    #[test]
    fn flat_spectra_survive_whole_or_not_at_all() {
        let flat = PowerLaw { amplitude: 1.0, exponent: 0.0 };
        assert_eq!((flat.max_frequency(0.4, 8.0), flat.max_frequency(0.6, 8.0)), (0.0, 8.0));
    }

    #[test]
    fn a_cosine_is_one_coefficient() {
        let (rows, columns) = (4, 6);
        let image: Vec<f64> = (0..rows * columns)
            .map(|at| (PI * ((at % columns) as f64 + 0.5) * 2.0 / columns as f64).cos())
            .collect();
        let found = dct2(&image, rows, columns);
        for (at, value) in found.iter().enumerate() {
            let expected = if at == 2 { (4.0f64).sqrt() * (3.0f64).sqrt() } else { 0.0 };
            assert!((value - expected).abs() < 1e-12, "{at}: {value}");
        }
        assert!(dct2(&image, 5, 5).is_empty() && dct2(&[], 0, 0).is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_of_squares_stays(image in prop::collection::vec(-3.0..3.0f64, 15)) {
            let square = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
            prop_assert!((square(&dct2(&image, 3, 5)) - square(&image)).abs() < 1e-9);
        }
    }
}
