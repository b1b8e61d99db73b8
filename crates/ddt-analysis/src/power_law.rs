//! A power spectrum that falls as a power of frequency, and what noise leaves of it.

/// `A f^(-B)`: the power of data by spatial frequency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerLaw {
    /// Power at frequency 1, `A`, where white noise of the path has power 1.
    pub amplitude: f64,
    /// How fast it falls, `B`; natural images have about 2.
    pub exponent: f64,
}

impl PowerLaw {
    /// The law nearest to (frequency, power) in least squares of the logarithms; pairs that are not both
    /// positive and finite do not count. `None` with fewer than two different frequencies.
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

    /// The power at a frequency.
    pub fn power(&self, frequency: f64) -> f64 {
        self.amplitude * frequency.powf(-self.exponent)
    }

    /// The power of `x_t = t data + (1 - t) noise` at a frequency.
    ///
    /// ```text
    /// t^2 A f^(-B) + (1 - t)^2
    /// ```
    pub fn noisy_power(&self, frequency: f64, t: f64) -> f64 {
        t * t * self.power(frequency) + (1.0 - t) * (1.0 - t)
    }

    /// The highest frequency at which the data outweigh the noise at time `t`, at most `highest`.
    ///
    /// ```text
    /// f_max(t) = min((A (t / (1 - t))^2)^(1/B), K)
    /// ```
    ///
    /// Equation (1) of arXiv:2504.05741 is the case `A = B = 1`. Data with no positive exponent outweigh the
    /// noise at all frequencies or at none.
    pub fn max_frequency(&self, t: f64, highest: f64) -> f64 {
        let ratio = self.amplitude * (t / (1.0 - t)).powi(2);
        if self.exponent > 0.0 {
            return ratio.powf(1.0 / self.exponent).min(highest);
        }
        if ratio >= 1.0 { highest } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
