//! Properties of any features, against independent computations.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod distances;
mod goldens;
mod jacobi;
mod nonsense;
mod order;
