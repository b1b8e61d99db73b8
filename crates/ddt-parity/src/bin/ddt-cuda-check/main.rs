//! The whole check of a GPU in one program: kernels, fixtures, timings, and the peer's timings beside them.
//!
//! Exit status: 0 when all holds, 1 when something does not, 2 for a wrong command line, 3 without a GPU.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::process::ExitCode;

use ddt_cuda::{Cuda, CudaError};

use report::Args;

mod compared;
mod report;
mod timings;

const USAGE: &str = "\
usage: ddt-cuda-check [--device N] [--fixtures FOLDER] [--peer FOLDER] [--out FOLDER]
  --device N         the GPU, from 0 (default 0)
  --fixtures FOLDER  golden outputs to compare with (default: fixtures)
  --peer FOLDER      bench_torch.py and ddt_torch.py (default: peer)
  --out FOLDER       where report.json and report.txt are written (default: .)";

/// The status that says that there is no GPU.
const NO_GPU: u8 = 3;

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("error: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if std::env::var_os("NVIDIA_TF32_OVERRIDE").is_some_and(|it| it == "1") {
        eprintln!(
            "error: NVIDIA_TF32_OVERRIDE=1 rounds the products of f32, which are checked here; unset it"
        );
        return ExitCode::from(2);
    }
    let cuda = match open(&args) {
        Ok(cuda) => cuda,
        Err(error) => {
            println!("not checked: {error}");
            return ExitCode::from(NO_GPU);
        }
    };
    match report::run(&args, &cuda) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(args: &Args) -> Result<Cuda, CudaError> {
    #[cfg(feature = "cuda-emulation")]
    if args.emulated {
        use ddt_kernels::cuda::emulation::{Order, open};
        return open(Order::Forwards);
    }
    Cuda::open(args.device)
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        device: 0,
        fixtures: "fixtures".into(),
        peer: "peer".into(),
        out: ".".into(),
        emulated: false,
    };
    while let Some(flag) = words.next() {
        // A build that can play the GPU may be asked to, which checks this program itself.
        if cfg!(feature = "cuda-emulation") && flag == "--emulated" {
            args.emulated = true;
            continue;
        }
        let mut value = || words.next().ok_or_else(|| format!("expected a value after {flag}"));
        match flag.as_str() {
            "--device" => {
                let text = value()?;
                args.device = text.parse().map_err(|_| format!("expected a number, got {text:?}"))?;
            }
            "--fixtures" => args.fixtures = value()?.into(),
            "--peer" => args.peer = value()?.into(),
            "--out" => args.out = value()?.into(),
            other => return Err(format!("expected a flag, got {other:?}")),
        }
    }
    Ok(args)
}
