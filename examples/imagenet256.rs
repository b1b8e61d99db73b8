//! Draws ImageNet classes at 256 x 256 pixels with DDT-XL/2, or the demo's classes without its weights.
//!
//! ```sh
//! cargo run --release --example imagenet256
//! cargo run --release --example imagenet256 -- --help
//! ```

use std::process::ExitCode;

use ddt_examples::{cli::Resolution, imagenet};

fn main() -> ExitCode {
    imagenet::main(Resolution::R256)
}
