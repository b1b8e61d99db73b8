//! Project automation: `cargo xtask <command>`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ddt_kernels::InstructionSet;
use xshell::{Shell, cmd};

mod cuda;
mod differential;
mod dist;
mod fuzz;
mod package;
mod parity;
mod tidy;
mod time;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project automation")]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Instructions to compute with on the CPU: widest, avx512bf16, avx512, avx2 or portable
    #[arg(long, global = true, default_value = "widest")]
    instructions: InstructionSet,
}

#[derive(Subcommand)]
enum Command {
    /// All that continuous integration checks, cheapest first
    Ci,
    /// Rules of the tree that compilers do not check
    Tidy {
        /// First make the page of unsafe code anew
        #[arg(long)]
        write: bool,
    },
    /// Checks too long for continuous integration: every fault of the disk, each package by itself, candle's
    /// CUDA devices, and the next one
    Long,
    /// The kernels' tests under AddressSanitizer
    Asan,
    /// Check the packages of all published crates: contents, sizes, manifests
    Package(package::Args),
    /// Build the program ddt for others, with licences, completions and a checksum
    Dist,
    /// Build the program that checks a GPU, with a CUDA toolkit found or made; pack it; run it
    Cuda(cuda::Args),
    /// Compare what is read with PyTorch, safetensors, NumPy and Pillow
    Differential(differential::Args),
    /// Fuzz every parser of untrusted bytes: a table of executions, coverage and findings
    Fuzz(fuzz::Args),
    /// Compare with fixtures: one line per tensor, then `N passed, M failed`
    Parity(parity::Args),
    /// Time a network with random weights and print one JSON line
    Time(time::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let run = || match args.command {
        Command::Ci => ci(),
        Command::Tidy { write } => tidy::run(write),
        Command::Long => long(),
        Command::Asan => asan(),
        Command::Package(args) => package::run(&args),
        Command::Dist => dist::run(),
        Command::Cuda(args) => cuda::run(&args),
        Command::Differential(args) => differential::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Time(args) => time::run(&args),
    };
    match args.instructions.limit().map_err(Into::into).and_then(|()| run()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn long() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(tidy::root());
    // Of the workspace, so that nothing is compiled with other features than the other tests.
    cmd!(sh, "cargo test --workspace --test it faults -- --nocapture").env("DDT_FAULTS", "all").run()?;
    package::run(&package::Args { downstream: true, verify: true })?;
    cuda::test_candle_if_possible()?;
    asan()
}

/// The checks of continuous integration, cheapest first; stops at the first that fails.
fn ci() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(tidy::root());
    cmd!(sh, "cargo fmt --all --check").run()?;
    tidy::check(&tidy::root())?;
    cmd!(sh, "cargo clippy --workspace --all-targets -- -D warnings").run()?;
    cmd!(sh, "cargo test --workspace").run()?;
    let _docs = sh.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(sh, "cargo doc --workspace --no-deps").run()?;
    package::run(&package::Args { downstream: false, verify: false })
}

/// Unsafe code reads and writes what it owns, as far as the tests of the kernels go. The standard library is not
/// instrumented.
fn asan() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(tidy::root());
    let _flags = sh.push_env("RUSTFLAGS", "-Zsanitizer=address");
    // The flag is unstable.
    let _unstable = sh.push_env("RUSTC_BOOTSTRAP", "1");
    let _target = sh.push_env("CARGO_TARGET_DIR", tidy::metadata(&tidy::root())?.1.join("asan"));
    // A target of its own, so that build scripts are compiled without.
    cmd!(sh, "cargo test -p ddt-kernels --target x86_64-unknown-linux-gnu --lib --tests").run()?;
    Ok(ExitCode::SUCCESS)
}
