//! Image folders: listing, decoding, cropping, in an order that resumes.
//!
//! Training takes photos as squares of bytes; this crate turns a folder of files into them. It knows neither
//! tensors nor random numbers: the caller's iterator of indices says which image comes when, so an order that
//! is a function of (seed, epoch) gives a delivery that is a function of (seed, epoch), on any number of
//! threads.
//!
//! - [`ImageFolder`] lists files and labels: class folders ([`ImageFolder::open`], labels by sorted folder
//!   name, or [`ImageFolder::open_with`] a [`ClassList`]), or a folder of images ([`ImageFolder::flat`]).
//!   [`ImageFolder::report`] counts what it found and left out, [`ImageFolder::identity`] detects changes.
//! - [`decode_rgb8`] decodes JPEG, PNG, WebP and BMP to [`Rgb8`] within [`Limits`]; anything else is an
//!   [`ImageError`]. [`read_rgb8`] does the same for a file, which its errors name.
//! - [`center_crop`] is ADM's preprocessing, bit for bit what Pillow computes from the same pixels.
//! - [`Loader`] decodes and crops on its own threads and delivers [`Sample`]s in order. A corrupt file is an
//!   error that names it, or is [`Skipped`] and counted ([`OnCorrupt`]).
//!
//! ```
//! use std::sync::Arc;
//! use ddt_data::{ImageFolder, Loader, LoaderOptions};
//! # let folder = tempfile::tempdir()?;
//! # for name in ["cat/a.png", "cat/b.png", "dog/c.png"] {
//! #     let path = folder.path().join(name);
//! #     std::fs::create_dir_all(path.parent().unwrap())?;
//! #     image::RgbImage::new(40, 30).save(path)?;
//! # }
//! # let root = folder.path();
//!
//! let images = Arc::new(ImageFolder::open(root)?);
//! let options = LoaderOptions::new(16, 2);
//! let mut labels = Vec::new();
//! for sample in Loader::new(images.clone(), [2, 0], options)? {
//!     let sample = sample?;
//!     assert_eq!(sample.pixels.as_bytes().len(), 16 * 16 * 3);
//!     labels.push(sample.label);
//! }
//! assert_eq!(labels, [Some(1), Some(0)]); // dog, cat
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
