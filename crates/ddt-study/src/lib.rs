#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! Mathematics, functions of numbers:
//!
//! - **Spectra** (eq. 1, appendix D). [`latent_spectrum`] is the power of latents by spatial frequency. A
//!   [`PowerLaw`] fitted to it predicts with [`PowerLaw::max_frequency`] up to which frequency the data survive the
//!   noise at a time; [`surviving_frequency`] measures the same.
//! - **Diffusions** (appendix C). A [`Schedule`] mixes data and noise; [`Schedule::drift`] and
//!   [`Schedule::half_diffusion`] define the diffusion whose probability-flow equation has the flow's velocity,
//!   [`Schedule::flow_velocity`]. For a [`Mixture`] of Gaussians all of these have a closed form.
//! - **Solvers** (Fig. 4). [`sweep`] runs any sampler with many solvers, numbers of steps and time shifts, and
//!   compares each run with a fine reference.
//!
//! Experiments, each a struct of settings with a `run`; they report [`News`], write tables and plots into a folder,
//! and the same settings resume what was stopped:
//!
//! - [`Analyses`] measures spectra and errors of solvers on a network;
//! - [`Comparison`] trains and compares small networks: the paper's Tab. 2 and Tab. 5;
//! - [`SharingStudy`] measures reuse and forecasts of the self-condition on a network, [`FidelityStudy`] the choices of
//!   [`ddt::Fidelity`];
//! - [`DemoStudy`] measures guidance, sharing and numbers of steps on the demo;
//! - [`ClassifierTraining`] trains the [`Classifier`] that an [`OfflineMetric`] measures with.
//!
//! [`frozen_networks`] loads the networks around a training run by the names that its settings have for them, and
//! [`decode_samples`] decodes its samples.
//!
//! Time runs from 0, pure noise, to 1, data.

#![forbid(unsafe_code)]

mod analyses;
mod classifier;
mod classifier_training;
mod comparison;
mod demo;
mod diffusion;
mod fidelity;
mod figures;
mod frozen_networks;
mod metric;
mod sharing;
mod spectrum;
mod state_forecast;
mod study;
mod sweep;

pub use crate::{
    analyses::Analyses,
    classifier::{Classified, Classifier},
    classifier_training::ClassifierTraining,
    comparison::{Comparison, Outcome, Table},
    demo::{DemoStudy, Group},
    diffusion::{Component, Mixture, Schedule},
    fidelity::FidelityStudy,
    frozen_networks::{decode_samples, frozen_networks},
    metric::{OfflineMetric, Seen},
    sharing::{Batch, Batches, Mean, SharingStudy, compare, parse_ratio, ways_with_plans},
    spectrum::{PowerLaw, Spectrum, dct2, latent_spectrum, surviving_frequency},
    study::{News, OnNews, ResultsFile, Subject},
    sweep::{Measured, Setting, relative_rms, sweep, sweep_settings},
};
