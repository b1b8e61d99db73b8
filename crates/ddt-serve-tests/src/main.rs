//! Long measurements of `ddt serve`: abuse on loopback, and the cost of previews.

#![allow(clippy::print_stdout, reason = "a command line prints")]

mod abuse;
mod previews;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Abuse ddt serve, or time its previews; build ddt first, in the same profile")]
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
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Abuse(args) => abuse::run(&args),
        Command::Previews(args) => previews::run(&args),
    }
}
