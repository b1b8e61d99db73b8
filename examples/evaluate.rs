//! Compares generated images with reference images: FID, sFID, Inception Score, precision and recall, each
//! with the protocol it belongs to. It prints a table and writes JSON.
//!
//! ```sh
//! cargo run --release --example evaluate -- --help
//! ```

use std::process::ExitCode;

use ddt_examples::evaluate;

fn main() -> ExitCode {
    evaluate::main()
}
