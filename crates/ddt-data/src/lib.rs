#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! The caller's iterator of indices says which image comes when, so an order that is a function of (seed, epoch)
//! gives a delivery that is a function of (seed, epoch), on any number of threads.
//!
//! - [`ImageFolder`] lists files and labels: class folders ([`ImageFolder::open`], labels by sorted folder
//!   name, or [`ImageFolder::open_with`] a [`ClassList`]), or a folder of images ([`ImageFolder::flat`]).
//!   [`ImageFolder::report`] counts what it found and left out, [`ImageFolder::identity`] detects changes.
//! - [`decode_rgb8`] decodes to [`Rgb8`] within [`Limits`]; anything else is an [`ImageError`].
//!   [`read_rgb8`] does the same for a file, which its errors name.
//! - [`center_crop`] is ADM's preprocessing, bit for bit what Pillow computes from the same pixels.
//! - [`Loader`] decodes and crops, and delivers [`Sample`]s in order. A corrupt file is an
//!   error that names it, or is [`Skipped`] and counted ([`OnCorrupt`]).

#![forbid(unsafe_code)]

mod class_list;
mod crop;
mod decode;
mod error;
mod image_folder;
mod listing;
mod loader;
mod ordered_pool;

pub use class_list::ClassList;
pub use crop::center_crop;
pub use ddt_picture::Rgb8;
pub use decode::{Limits, decode_rgb8, read_rgb8};
pub use error::{DataError, ImageError};
pub use image_folder::{Class, FolderReport, ImageFolder};
pub use loader::{Loader, LoaderOptions, OnCorrupt, Sample, Skipped, SkippedFile};
