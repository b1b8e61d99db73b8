//! The programs with small networks, through the functions behind `main`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod evaluating;
