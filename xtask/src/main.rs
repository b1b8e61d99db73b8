//! Project automation: `cargo xtask <command>`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod ci;
mod cuda;
mod parity;
mod tidy;
mod time;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project automation")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All that continuous integration checks, cheapest first
    Ci,
    /// Rules of the tree that compilers do not check
    Tidy,
    /// Build the program that checks a GPU, with a CUDA toolkit found or made; pack it; run it
    Cuda(cuda::Args),
    /// Compare with fixtures: one line a tensor, then `N passed, M failed`
    Parity(parity::Args),
    /// Time a network with random weights and print one JSON line
    Time(time::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Cuda(args) => cuda::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Time(args) => time::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
