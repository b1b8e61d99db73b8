//! Checks against independent implementations, through the public interface.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

#[path = "../../src/testing.rs"]
mod testing;

mod extractors;
mod goldens;
mod kl_oracle;
mod loading;
mod rae;
mod zeros;
