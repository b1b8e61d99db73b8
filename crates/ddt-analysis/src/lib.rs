//! The analyses of arXiv:2504.05741 as functions of numbers, without plots.
//!
//! **Spectra** (eq. 1, appendix D). [`latent_spectrum`] is the power of latents by spatial frequency. A
//! [`PowerLaw`] fitted to it predicts with [`PowerLaw::max_frequency`] up to which frequency the data survive
//! the noise at a time; [`surviving_frequency`] measures the same.
//!
//! **Diffusions** (appendix C). A [`Schedule`] mixes data and noise; [`Schedule::drift`] and
//! [`Schedule::half_diffusion`] define the diffusion whose probability-flow equation has the flow's velocity,
//! [`Schedule::flow_velocity`]. For a [`Mixture`] of Gaussians all of these have a closed form.
//!
//! **Solvers** (Fig. 4). [`sweep`] runs any sampler with many solvers, numbers of steps and time shifts, and
//! compares each run with a fine reference.
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

mod diffusion;
mod spectrum;
mod sweep;

pub use diffusion::{Component, Mixture, Schedule};
pub use spectrum::{PowerLaw, Spectrum, dct2, latent_spectrum, surviving_frequency};
pub use sweep::{Measured, Setting, relative_rms, settings, sweep};
