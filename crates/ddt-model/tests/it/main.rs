//! The network as its users meet it: against golden outputs, in training, when sharing, on disk.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod families;
mod files;
mod goldens;
mod gradients;
mod networks;
mod sharing;
