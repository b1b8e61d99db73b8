//! Checks against independent implementations, through the public interface.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they skip"
)]

#[path = "../../src/testing.rs"]
mod testing;

mod extractors;
mod fixtures;
mod kl_oracle;
mod loading;
mod zeros;
