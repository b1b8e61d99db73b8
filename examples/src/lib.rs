//! Shared parts of the examples: everything between a command line and the libraries.
//!
//! - [`classes`] turns what a user types into class numbers.
//! - [`progress`] shows how far sampling is, and stops it.
//! - [`picture`] and [`text`] draw; [`grid`] arranges samples.
//! - [`png_file`] and [`atomic_file`] write results, complete or not at all.
//! - [`imagenet`] is the programs `imagenet256` and `imagenet512`: [`cli`] (with [`sampler_args`]) reads their
//!   command line, [`job`] checks it, [`weights`] (with [`assets`], [`hub_files`] and [`weaker`]) finds the network,
//!   [`decoder_file`] and [`normalized`] its autoencoder, [`identity`] says what both are, [`sharing_choice`] has
//!   the plan; [`generate`] draws and [`page`] lays out.
//! - [`program`] is what all of them do around their work.
//! - [`evaluate`] is the program of that name, which compares images with images.

#![forbid(unsafe_code)]

/// Class tables.
pub mod classes {
    pub use ddt::ClassTable;
}

pub mod assets;
pub mod atomic_file;
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
pub mod normalized;
pub mod page;
pub mod picture;
pub mod png_file;
pub mod program;
pub mod progress;
pub mod sampler_args;
pub mod sharing_choice;
pub mod text;
pub mod weaker;
pub mod weights;
