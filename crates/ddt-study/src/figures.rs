//! Plots and tables of the analyses.

use std::fmt::Write as _;

use ddt_plot::{LinePlot, Series, number};
use serde_json::{Value, json};

use crate::{
    spectrum::{PowerLaw, Spectrum, surviving_frequency},
    sweep::{Measured, Setting},
};

/// Spectra of clean and of noisy latents.
#[derive(Debug, Clone)]
pub(crate) struct Spectra {
    /// Spectrum of the data.
    pub(crate) data: Spectrum,
    /// Spectra of the data mixed with noise, by time.
    pub(crate) noisy: Vec<(f64, Spectrum)>,
}

impl Spectra {
    /// The power law of the data; `None` if they have fewer than two frequencies.
    pub(crate) fn law(&self) -> Option<PowerLaw> {
        PowerLaw::fit(&self.data.bands)
    }

    /// All numbers.
    pub(crate) fn to_json(&self) -> Value {
        let noisy: Vec<Value> =
            self.noisy.iter().map(|(t, spectrum)| json!({ "t": t, "power": spectrum.bands })).collect();
        let law = self.law().map(|it| json!({ "amplitude": it.amplitude, "exponent": it.exponent }));
        json!({ "data": self.data.bands, "noisy": noisy, "power_law": law })
    }

    /// The highest frequency there is.
    fn highest(&self) -> f64 {
        self.data.bands.last().map_or(0.0, |(f, _)| *f)
    }
}

/// Power by frequency, of the data and at several times (appendix D of arXiv:2504.05741).
pub(crate) fn spectrum_plot(spectra: &Spectra) -> String {
    let mut series = vec![Series { name: "t = 1, data".to_owned(), points: spectra.data.bands.clone() }];
    for (t, spectrum) in spectra.noisy.iter().rev() {
        series.push(Series { name: format!("t = {}", number(*t)), points: spectrum.bands.clone() });
    }
    let plot = LinePlot {
        title: "Spectrum of noisy latents",
        x_label: "spatial frequency (half-waves across the latent)",
        y_label: "mean power of a coefficient",
        log_y: true,
        series: &series,
    };
    plot.svg()
}

/// The highest frequency at which data outweigh noise, by time: measured, by the fitted law, and by eq. (1).
pub(crate) fn fmax_plot(spectra: &Spectra) -> String {
    let highest = spectra.highest();
    let curve =
        |of: &dyn Fn(f64) -> f64| (0..=200).map(|i| f64::from(i) / 200.0).map(|t| (t, of(t))).collect();
    let mut series = vec![Series {
        name: "measured".to_owned(),
        points: curve(&|t| surviving_frequency(&spectra.data, t)),
    }];
    if let Some(law) = spectra.law() {
        let name = format!("power law {:.2} f^-{:.2}", law.amplitude, law.exponent);
        series.push(Series { name, points: curve(&|t| law.max_frequency(t, highest)) });
    }
    let paper = PowerLaw { amplitude: 1.0, exponent: 1.0 };
    series.push(Series { name: "eq. (1)".to_owned(), points: curve(&|t| paper.max_frequency(t, highest)) });
    let plot = LinePlot {
        title: "Highest frequency that survives the noise",
        x_label: "flow time t (0 is noise, 1 is data)",
        y_label: "spatial frequency (half-waves across the latent)",
        log_y: false,
        series: &series,
    };
    plot.svg()
}

/// A curve per solver.
pub(crate) fn by_solver(setting: &Setting) -> String {
    setting.solver.clone()
}

/// A curve per time shift.
pub(crate) fn by_timeshift(setting: &Setting) -> String {
    format!("shift {}", number(setting.timeshift))
}

/// Error by evaluations of the network, a curve per name.
pub(crate) fn error_plot(title: &str, measured: &[Measured], name: impl Fn(&Setting) -> String) -> String {
    let mut series: Vec<Series> = Vec::new();
    for it in measured {
        let (name, point) = (name(&it.setting), (it.evaluations as f64, it.error));
        match series.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    let plot = LinePlot {
        title,
        x_label: "evaluations of the network",
        y_label: "distance from the reference (relative RMS)",
        log_y: true,
        series: &series,
    };
    plot.svg()
}

/// All numbers of a sweep.
pub(crate) fn to_json(measured: &[Measured]) -> Value {
    measured
        .iter()
        .map(|it| {
            json!({
                "solver": it.setting.solver, "steps": it.setting.num_steps, "timeshift": it.setting.timeshift,
                "evaluations": it.evaluations, "error": it.error,
            })
        })
        .collect()
}

/// The sweeps as text.
pub(crate) fn table(by_solver: &[Measured], by_shift: &[Measured]) -> String {
    let mut text = String::from("solver               shift  steps  evaluations  error\n");
    for it in by_solver.iter().chain(by_shift) {
        let Setting { solver, num_steps, timeshift } = &it.setting;
        let (shift, evaluations, error) = (number(*timeshift), it.evaluations, it.error);
        // Writing to a string does not fail.
        writeln!(text, "{solver:20} {shift:>5} {num_steps:>6} {evaluations:>12}  {error:.4}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_say_what_they_show() {
        let bands =
            |scale: f64| (0..5).map(|f| (f64::from(f), scale / f64::from(f.max(1)).powi(2))).collect();
        let spectra = Spectra {
            data: Spectrum { bands: bands(4.0) },
            noisy: vec![(0.5, Spectrum { bands: bands(1.0) })],
        };
        let svg = spectrum_plot(&spectra);
        assert!(svg.contains("t = 1, data") && svg.contains("t = 0.5"));
        let svg = fmax_plot(&spectra);
        assert!(svg.contains("power law 4.00 f^-2.00") && svg.contains("eq. (1)"), "{svg}");
        let measured = |solver: &str, num_steps, error| Measured {
            setting: Setting { solver: solver.to_owned(), num_steps, timeshift: 1.5 },
            evaluations: num_steps,
            error,
        };
        let all = [measured("euler", 4, 0.5), measured("euler", 8, 0.25), measured("heun", 4, 0.1)];
        let svg = error_plot("errors", &all, by_solver);
        assert!(svg.contains("euler") && svg.contains("heun"));
        assert!(error_plot("errors", &all, by_timeshift).contains("shift 1.5"));
        assert_eq!(table(&all, &all).lines().count(), 7);
        assert_eq!(to_json(&all)[1]["error"], 0.25);
    }
}
