//! The paper's comparisons of networks at a small scale, one command a table: the split, and decoder blocks.
//!
//! ```sh
//! cargo run --release --example reproduce -- split
//! cargo run --release --example reproduce -- decoder
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    ddt_examples::reproduce::main()
}
