//! Files of tensors and arrays: bounded readers and crash-safe writers.
//!
//! A [`Checkpoint`] is an opened file of tensors: safetensors (one file, or several with an index) or what
//! `torch.save` writes, told apart by content. Opening reads the table of contents only; a tensor is read from
//! its own place in the file when it is asked for, so one tensor of an 11 GB checkpoint costs one tensor.
//!
//! Whatever holds named tensors is a [`TensorSource`]: a checkpoint, or some of its tensors under other names or
//! without a prefix ([`Renamed`]). [`load_exact`] takes what a network expects from a
//! source, and returns all of it or one error that lists every missing, unexpected and misshapen name.
//!
//! A [`FileSystem`] is the one layer that changes the disk: it replaces files as a whole
//! ([`atomic_write`], [`write_safetensors`], [`npz::write_npz`]), and tests can make any step of it fail.
//!
//! **Promise:** any bytes give a value or a [`FileError`]. Nothing is executed, memory is bounded by
//! fixed limits and by the size of the file, and no input panics.
//!
//! # Example
//!
//! ```
//! use std::collections::BTreeMap;
//! use candle_core::{DType, Device, Tensor};
//! use ddt_files::{Checkpoint, LoadOptions, load_exact, write_safetensors};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("weights.safetensors");
//! let weight = Tensor::arange(0f32, 6.0, &Device::Cpu)?.reshape((2, 3))?;
//! let tensors = BTreeMap::from([("ema.proj.weight".to_string(), weight)]);
//! write_safetensors(&path, &tensors, &BTreeMap::new())?;
//!
//! let checkpoint = Checkpoint::open(&path)?;
//! let expected = [("proj.weight".to_string(), vec![2, 3])];
//! let options = LoadOptions::new(&Device::Cpu).cast(DType::F16);
//! let loaded = load_exact(&checkpoint.with_prefix("ema."), &expected, &options)?;
//! assert_eq!(loaded["proj.weight"].dtype(), DType::F16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub use checkpoint::{Checkpoint, Format};
pub use error::{FileError, Misshapen};
pub use file_system::{Change, DiskFile, FileSystem, atomic_write};
pub use hash::{sha256, sha256_file};
pub use load::{Comparison, LoadOptions, load_exact};
pub use safetensors_file::write_safetensors;
pub use source::read_file;
pub use tensor_source::{Renamed, TensorInfo, TensorSource};

mod checkpoint;
mod error;
pub mod faults;
mod file_system;
mod hash;
mod limits;
mod load;
pub mod npz;
mod place;
mod safetensors_file;
mod source;
mod tensor_source;
mod torch;
mod zip;
