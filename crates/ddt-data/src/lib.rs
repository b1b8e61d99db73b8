//! Image folders: listing, decoding, cropping, in an order that resumes.
//!
//! Training sees photos as squares of bytes; this crate turns a folder of files into them. It knows
//! neither tensors nor random numbers: which image comes when is the caller's iterator of indices, so an
//! order that is a function of (seed, epoch) gives a delivery that is a function of (seed, epoch), on any
//! number of threads.
//!
//! How the nouns meet:
//!
//! - [`ImageFolder`] lists files and labels: class folders ([`ImageFolder::open`], labels by sorted folder
//!   name, or [`ImageFolder::open_with`] a [`ClassList`]), or a folder of images ([`ImageFolder::flat`]).
//!   [`ImageFolder::identity`] says cheaply whether it is the folder it was.
//! - [`decode_rgb8`] turns the bytes of a JPEG or PNG into [`Rgb8`] within [`Limits`]; whatever else the
//!   bytes are is an [`ImageError`]. [`read_rgb8`] does so for a file and names it in the error.
//! - [`center_crop`] is ADM's preprocessing, bit for bit what Pillow computes from the same pixels.
//! - [`Loader`] does both on its own threads and delivers [`Sample`]s in order. A corrupt file is an error
//!   that names it, or is [`Skipped`] and counted ([`OnCorrupt`]).
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
mod identity;
mod image_folder;
mod loader;
mod natural_order;
mod ordered_pool;
mod read;
mod resample;
mod rgb8;
mod walk;

pub use class_list::ClassList;
pub use crop::{MAX_CROP_SIZE, center_crop};
pub use decode::{Limits, decode_rgb8};
pub use error::{DataError, ImageError};
pub use image_folder::{Class, ImageFolder};
pub use loader::{Loader, LoaderOptions, MAX_SKIPPED_NAMES, OnCorrupt, Sample, Skipped, SkippedFile};
pub use read::read_rgb8;
pub use rgb8::Rgb8;
