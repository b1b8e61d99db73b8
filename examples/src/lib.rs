//! Shared parts of the examples: everything between a command line and the libraries.
//!
//! - [`classes`] turns what a user types into class numbers.
//! - [`progress`] shows how far sampling is, and stops it.
//! - [`picture`] and [`text`] draw; [`grid`] arranges samples, [`plot`] draws curves.
//! - [`png_file`] and [`atomic_file`] write results, complete or not at all.
//! - [`imagenet`] is the programs `imagenet256` and `imagenet512`: [`cli`] (with [`sampler_args`]) reads their
//!   command line, [`job`] checks it, [`weights`] (with [`assets`], [`hub_files`] and [`weaker`]) finds the network,
//!   [`decoder_file`] and [`normalized`] its autoencoder, [`identity`] says what both are, [`sharing_choice`] has
//!   the plan; [`generate`] draws and [`page`] lays out.
//! - [`program`] is what all of them do around their work.
//! - [`analyse`] is the program of that name, which draws the paper's analyses.
//! - [`evaluate`] is the program of that name, which compares images with images.
//! - [`classifier`] is a small network that knows CIFAR-10, which samples are measured with where Inception is not at hand.
//! - [`offline_metric`] measures with it; [`measure_demo`] is the program that measures the demo so, [`reproduce`]
//!   the one that trains and compares small networks; [`results_file`] keeps what both have measured.
//! - [`train`] is the program of that name: photos to latents, batches, the loop and what it reports.
//!

#![forbid(unsafe_code)]

/// Class tables.
pub mod classes {
    pub use ddt::ClassTable;
}

/// Line plots.
pub mod plot {
    pub use ddt_plot::{LinePlot, Series, number};
}

pub mod analyse;
pub mod assets;
pub mod atomic_file;
pub mod classifier;
pub mod cli;
pub mod decoder_file;
pub mod evaluate;
pub mod generate;
pub mod gpu;
pub mod grid;
pub mod hub_files;
pub mod identity;
pub mod imagenet;
pub mod job;
pub mod measure_demo;
pub mod normalized;
pub mod offline_metric;
pub mod page;
pub mod picture;
pub mod plan_sharing;
pub mod png_file;
pub mod program;
pub mod progress;
pub mod reproduce;
pub mod results_file;
pub mod sampler_args;
pub mod sharing_choice;
pub mod text;
pub mod train;
pub mod weaker;
pub mod weights;
