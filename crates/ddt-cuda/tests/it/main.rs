//! Programs against the network they are programs of, on the CPU.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod goldens;
mod programs;
