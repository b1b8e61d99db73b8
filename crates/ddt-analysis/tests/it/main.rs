//! The analyses on data whose answers are known.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod diffusion;
mod solvers;
