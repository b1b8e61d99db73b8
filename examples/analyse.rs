//! Draws the paper's analyses for a network: spectra of noisy latents, and errors of solvers.
//!
//! ```sh
//! cargo run --release --example analyse
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    ddt_examples::analyse::main()
}
