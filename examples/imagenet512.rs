//! Draws ImageNet classes at 512 x 512 pixels with DDT-XL/2, or the demo's classes without its weights.
//!
//! ```sh
//! cargo run --release --example imagenet512
//! cargo run --release --example imagenet512 -- --help
//! ```

use std::process::ExitCode;

use ddt_examples::{cli::Resolution, imagenet};

fn main() -> ExitCode {
    imagenet::main(Resolution::R512)
}
