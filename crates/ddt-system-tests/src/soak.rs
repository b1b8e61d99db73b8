//! Training, archives and a server for as long as one likes, with kills: the same bytes, flat memory.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ddt_system_tests::built;

use self::{processes::Soak, watch::Watch};

mod archive;
mod processes;
mod server;
mod training;
mod watch;

/// Flags of the soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of the soak, in minutes
    #[arg(long, default_value_t = 90)]
    minutes: u64,
    /// Folder for its files: a new one
    #[arg(long, default_value = "out/soak")]
    folder: PathBuf,
}

/// Runs everything and prints the figures.
///
/// # Errors
/// Other bytes than those of an undisturbed run, memory or open files that grow, or a process that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let length = Duration::from_secs(60 * args.minutes);
    fs::create_dir_all(args.folder.parent().unwrap_or(Path::new(".")))?;
    fs::create_dir(&args.folder)
        .with_context(|| format!("expected a new folder: {}", args.folder.display()))?;
    let soak = Soak {
        program: built("ddt")?,
        folder: args.folder.canonicalize()?,
        until: Instant::now() + length,
        watch: Watch::new(length),
    };
    let results = thread::scope(|scope| {
        let soak = &soak;
        scope.spawn(move || soak.watch.sample());
        let jobs = [training::run, archive::run, server::run].map(|job| scope.spawn(move || job(soak)));
        let results = jobs.map(|it| it.join().unwrap_or_else(|_| bail!("panicked")));
        soak.watch.end();
        results
    });
    println!("{} minutes", args.minutes);
    for it in results.iter().flatten().flatten() {
        println!("  {it}");
    }
    fs::write(soak.folder.join("memory.csv"), soak.watch.csv())?;
    print!("{}", soak.watch.table());
    let failed: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|it| format!("{it:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    soak.watch.check()
}
