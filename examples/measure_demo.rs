//! Measures the demo by what the small classifier sees in its images: guidance, sharing, the autoencoder.
//!
//! ```sh
//! cargo run --release --example measure_demo
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    ddt_examples::measure_demo::main()
}
