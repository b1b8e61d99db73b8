//! Training, archives and a server for as long as one likes, with kills: the same bytes, flat memory.

use std::{
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ddt_files::sha256_file;
use ddt_system_tests::built;

use self::watch::Watch;

mod archive;
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

/// A soak: its time, its processes and where their files are.
struct Soak {
    program: PathBuf,
    folder: PathBuf,
    until: Instant,
    watch: Watch,
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

impl Soak {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Waits for a random time between these seconds, at most to the end of the soak or of the process. Returns
    /// whether the process still runs.
    fn wait(&self, seconds: std::ops::Range<u64>, process: &mut Process<'_>) -> Result<bool> {
        let random = RandomState::new().hash_one(0) % (seconds.end - seconds.start);
        let until = self.until.min(Instant::now() + Duration::from_secs(seconds.start + random));
        while Instant::now() < until && process.is_running()? {
            sleep(Duration::from_millis(100));
        }
        process.is_running()
    }

    /// Starts `ddt` in a folder of the soak; its messages go to a file beside it.
    fn start(&self, role: &'static str, folder: &str, line: &str) -> Result<Process<'_>> {
        let place = self.folder.join(folder);
        fs::create_dir_all(&place)?;
        let log = self.folder.join(format!("{folder}.log"));
        let messages = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.program);
        command.args(line.split(' ')).current_dir(place).stdout(messages.try_clone()?).stderr(messages);
        let child = command.spawn().context("cannot start ddt")?;
        self.watch.add(role, child.id());
        Ok(Process { child, watch: &self.watch, log })
    }

    /// Runs `ddt` to its end.
    fn finish(&self, role: &'static str, folder: &str, line: &str) -> Result<()> {
        self.start(role, folder, line)?.succeed()
    }

    /// Requires that files below two folders of the soak are equal.
    fn compare(&self, one: &str, other: &str, files: &[String]) -> Result<()> {
        for file in files {
            let sum = |folder: &str| sha256_file(&self.folder.join(folder).join(file));
            ensure!(sum(one)? == sum(other)?, "{file} of {one} and {other} differ");
        }
        Ok(())
    }
}

/// A process of the program, which is watched, and killed when it is dropped.
struct Process<'a> {
    child: Child,
    watch: &'a Watch,
    log: PathBuf,
}

impl Process<'_> {
    fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, as Ctrl-C does, and waits.
    fn interrupt(mut self) -> Result<()> {
        let asked = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        ensure!(asked.success(), "cannot send a signal");
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end, which must be a success.
    fn succeed(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "a process ended with {status}; its messages are in {}",
            self.log.display()
        );
        Ok(())
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.watch.remove(self.child.id());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
