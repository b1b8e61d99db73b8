//! Draws a data set of generated images into one npz file, resuming where it was left.
//!
//! ```sh
//! cargo run --release --example generate_dataset -- --count 1000
//! cargo run --release --example generate_dataset -- --help
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    ddt_examples::generate_dataset::main()
}
