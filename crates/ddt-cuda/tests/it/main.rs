//! Programs against the network they are programs of, on the CPU.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

#[cfg(feature = "cuda-emulation")]
mod emulated;
mod fixtures;
#[cfg(feature = "cuda-emulation")]
mod inception;
#[cfg(feature = "cuda-emulation")]
mod kl;
mod programs;
