//! Whole files: written by others, written by us, and written to do harm.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod builders;
mod faults;
mod hostile;
mod image_archives;
mod npz_files;
mod safetensors_files;
mod torch_files;
mod torch_legacy;
