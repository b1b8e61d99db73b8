//! Solvers as their users meet them: the order of each, and what they ask of a model.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod evaluations;
mod orders;
