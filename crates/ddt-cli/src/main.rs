//! The program `ddt`: one subcommand per job.
//!
//! Messages go to standard error, results to standard output. The exit status is 0, 1 for an error, 2 for a usage
//! error, 130 after Ctrl-C.

mod convert;
mod dataset;
mod doctor;
mod evaluate;
mod fetch;
mod inspect;
mod options;
mod plan;
mod ranks;
mod sample;
#[cfg(feature = "serve")]
mod serve;
mod study;
mod terminal;
mod train;
mod verify;

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    ranks::Silent,
    terminal::{Cancel, INTERRUPTED, Terminal, is_interruption},
};

/// Decoupled Diffusion Transformers: generate images, share the encoder between steps, train, measure.
#[derive(Debug, Parser)]
#[command(name = "ddt", version, propagate_version = true)]
struct Args {
    /// Print results and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

// As `about`, so that the full help is the description of the arguments.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(about = "Generate images of chosen classes as a labelled grid")]
    Sample(Box<sample::Args>),
    #[cfg(feature = "serve")]
    #[command(about = "Serve a page in the browser to generate, compare and plan")]
    Serve(Box<serve::Args>),
    #[command(about = "Measure a network and plan at which steps its encoder runs")]
    Plan(Box<plan::Args>),
    #[command(about = "Generate many images into one archive, resuming where it stopped")]
    Dataset(Box<dataset::Args>),
    #[command(about = "Compare generated images with reference images: FID and related numbers")]
    Evaluate(Box<evaluate::Args>),
    #[command(about = "Train a network, or resume its run")]
    Train(train::Args),
    #[command(about = "Measure the paper's claims at a small scale")]
    Study(Box<study::Args>),
    #[command(about = "Download published weights into the hub's local cache")]
    Fetch(fetch::Args),
    #[command(
        about = "Check the published files in the hub's local cache, and the paper's numbers with them"
    )]
    Verify(Box<verify::Args>),
    #[command(about = "List what a weights file holds, or compare two")]
    Inspect(inspect::Args),
    #[command(about = "Write weights as safetensors with their description")]
    Convert(convert::Args),
    #[command(about = "Say what this machine and this build are")]
    Doctor(doctor::Args),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the page docs/OPTIONS.md
    #[command(hide = true)]
    Options,
}

fn main() -> ExitCode {
    let Args { quiet, command } = Args::parse();
    let outcome = Cancel::on_ctrl_c().and_then(|cancel| run(command, &Terminal::new(quiet, cancel)));
    match outcome {
        Ok(result) => {
            // A reader that went away is no reason to fail.
            writeln!(std::io::stdout(), "{result}").ok();
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<Silent>() => {
            error.downcast_ref::<Silent>().map_or(ExitCode::FAILURE, |it| it.status.into())
        }
        Err(error) if is_interruption(&error) => {
            writeln!(std::io::stderr(), "stopped; files that were written before are complete").ok();
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            writeln!(std::io::stderr(), "error: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

/// Runs a subcommand and returns its result as text.
fn run(command: Command, terminal: &Terminal) -> Result<String> {
    match command {
        Command::Sample(args) => sample::run(&args, terminal),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args, terminal),
        Command::Plan(args) => plan::run(&args, terminal),
        Command::Dataset(args) => dataset::run(&args, terminal),
        Command::Evaluate(args) => evaluate::run(&args, terminal),
        Command::Train(args) => train::run(&args, terminal),
        Command::Study(args) => study::run(&args, terminal),
        Command::Fetch(args) => fetch::run(&args, terminal),
        Command::Verify(args) => verify::run(&args, terminal),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "ddt", &mut script);
            Ok(String::from_utf8(script)?)
        }
        Command::Options => options::page(Args::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }
}
