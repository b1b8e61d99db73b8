//! The power of latents by spatial frequency.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::dct::dct2;

/// Mean power in bands of spatial frequency.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Middle of each band that has coefficients, in half-waves across the image, and its mean power.
    pub bands: Vec<(f64, f64)>,
}

/// The spectrum of latents, the mean over samples and channels.
///
/// A coefficient's frequency is the length of its two frequencies, in half-waves across a side: 0 is the
/// mean of the image. Bands are one wide, `[f - 1/2, f + 1/2)`.
///
/// # Shapes
///
/// `latents`: (B, C, H, W) in any float type.
///
/// # Errors
///
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

/// The band of a coefficient.
fn band(row: usize, column: usize) -> usize {
    ((row * row + column * column) as f64).sqrt().round() as usize
}

/// The highest band of clean data up to which every band outweighs the noise at time `t`.
///
/// ```text
/// t^2 P(f) >= (1 - t)^2
/// ```
///
/// What [`PowerLaw::max_frequency`](crate::PowerLaw::max_frequency) predicts, read off the data themselves;
/// between bands it is interpolated where the logarithm of the ratio crosses zero. 0 if the noise
/// outweighs even the first band above the mean.
pub fn surviving_frequency(data: &Spectrum, t: f64) -> f64 {
    let ratio = |power: f64| (t * t * power).ln() - ((1.0 - t) * (1.0 - t)).ln();
    let mut last: Option<(f64, f64)> = None;
    for &(f, power) in data.bands.iter().filter(|(f, _)| *f > 0.0) {
        let here = ratio(power);
        if here < 0.0 {
            return match last {
                // Where the straight line between the two is zero.
                Some((before, above)) => before + (f - before) * above / (above - here),
                None => 0.0,
            };
        }
        last = Some((f, if here.is_finite() { here } else { f64::MAX }));
    }
    last.map_or(0.0, |(f, _)| f)
}

#[cfg(test)]
mod tests {
    use ddt_flow::{LinearPath, noise_batch};

    use super::*;
    use crate::power_law::PowerLaw;

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
}
