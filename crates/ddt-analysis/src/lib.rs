//! The analyses of arXiv:2504.05741 as functions: they measure and return numbers, and draw nothing.
//!
//! **Spectra** (eq. 1, appendix D). [`latent_spectrum`] is the power of latents by spatial frequency, from
//! the [`dct2`] of each channel; a [`PowerLaw`] fitted to it predicts with [`PowerLaw::max_frequency`] up to
//! which frequency data survive the noise at a time, and [`surviving_frequency`] reads the same off the
//! measured spectrum.
//!
//! **Diffusions** (appendix C). A [`Schedule`] mixes data and noise; [`Schedule::drift`] and
//! [`Schedule::half_diffusion`] are the diffusion whose probability-flow equation has the flow's velocity,
//! [`Schedule::flow_velocity`]. A [`Mixture`] of Gaussians has all of these in closed form.
//!
//! **Solvers** (Fig. 4). [`sweep`] runs any sampler with many solvers, numbers of steps and time shifts, and
//! compares each with a fine reference.
//!
//! Time runs from 0, pure noise, to 1, data.
//!
//! ```
//! use ddt_analysis::PowerLaw;
//!
//! // Equation 1: amplitude and exponent 1, nothing above frequency 16.
//! let law = PowerLaw { amplitude: 1.0, exponent: 1.0 };
//! assert_eq!(law.max_frequency(0.5, 16.0), 1.0);
//! assert_eq!(law.max_frequency(0.75, 16.0), 9.0);
//! assert_eq!(law.max_frequency(1.0, 16.0), 16.0);
//! ```

#![forbid(unsafe_code)]

mod dct;
mod mixture;
mod power_law;
mod schedule;
mod spectrum;
mod sweep;

pub use dct::dct2;
pub use mixture::{Component, Mixture};
pub use power_law::PowerLaw;
pub use schedule::Schedule;
pub use spectrum::{Spectrum, latent_spectrum, surviving_frequency};
pub use sweep::{Measured, Setting, relative_rms, settings, sweep};
