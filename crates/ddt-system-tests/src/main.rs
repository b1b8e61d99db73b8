//! Long tests of the program `ddt`: a soak, abuse of `ddt serve`, and the cost of its previews.

#![allow(clippy::print_stdout, reason = "a command line prints")]

mod abuse;
mod previews;
mod soak;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Long tests of the program ddt; build it first, in the same profile")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Malformed requests, slow connections, many jobs, huge bodies and disconnects, and a client that wants a picture
    Abuse(abuse::Args),
    /// Time the same job with and without previews, in turns
    Previews(previews::Args),
    /// Train, fill archives and serve for long, with kills: the same bytes, flat memory
    Soak(soak::Args),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Abuse(args) => abuse::run(&args),
        Command::Previews(args) => previews::run(&args),
        Command::Soak(args) => soak::run(&args),
    }
}
