//! Whole files: written by others, written by us, and written to do harm.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod faults;
mod goldens;
mod hostile;
mod image_archives;
mod npz_hostile;
mod npz_reading;
mod safetensors_files;
mod torch_builder;
mod torch_files;
mod torch_legacy;
mod zip_builder;
