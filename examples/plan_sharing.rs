//! Measures how alike a network's self-conditions are from step to step, and plans where to recompute them.
//!
//! ```sh
//! cargo run --release --example plan_sharing
//! cargo run --release --example imagenet256 -- --share out/sharing/plan-0.8.json
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    ddt_examples::plan_sharing::main()
}
