//! Fuzzing of every parser of untrusted bytes: the targets in `fuzz/`, built, run in turn and counted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::tidy::{metadata, root};
use record::Record;

mod corpus;
mod record;

/// Longest run of one process, in seconds: a run that is stopped loses no more.
const SLICE: u64 = 60;

/// Time in which a planted bug must be found, in seconds.
const PLANTED: u64 = 60;

/// Fuzz every parser of untrusted bytes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets [default: all]
    targets: Vec<String>,
    /// Time for each target, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Instead of a time: until the record has so many executions of each target
    #[arg(long)]
    until: Option<u64>,
    /// File of executions, to which this run adds its own [default: target/fuzz/record.json]
    #[arg(long)]
    record: Option<PathBuf>,
    /// Targets that run at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Only the targets that do not need the whole program, which takes long to compile
    #[arg(long)]
    light: bool,
    /// Instead: check that the bug planted in each target is found within a minute
    #[arg(long)]
    planted: bool,
    /// Instead: replace the committed corpora by a minimal choice of all inputs found
    #[arg(long)]
    minimise: bool,
}

/// Folders of programs and inputs.
struct Folders {
    /// `fuzz/` of the repository.
    sources: PathBuf,
    /// Programs of the targets.
    programs: PathBuf,
    /// Of each target its corpus, seeds and findings.
    inputs: PathBuf,
}

/// The outcome of one process.
struct Outcome {
    log: String,
    succeeded: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (folders, known) = build(args)?;
    for name in &args.targets {
        ensure!(known.contains(name), "expected targets {}, got {name}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { known } else { args.targets.clone() };
    if args.minimise {
        chosen.iter().try_for_each(|it| folders.minimise(it))?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.record.clone().unwrap_or_else(|| folders.inputs.join("record.json"));
    let record = Mutex::new(if args.planted { Record::default() } else { Record::read(&path)? });
    let (queue, failures) = (Mutex::new(chosen), Mutex::new(Vec::new()));
    let next = || queue.lock().ok().and_then(|mut it| (!it.is_empty()).then(|| it.remove(0)));
    let fail = |failure: String| {
        println!("{failure}");
        failures.lock().map(|mut it| it.push(failure)).ok();
    };
    let mut spent = Mutex::new(BTreeMap::<String, u64>::new());
    let work = || {
        while let Some(name) = next() {
            if args.planted {
                if let Err(error) = folders.find_planted(&name) {
                    fail(format!("{name}: {error:#}"));
                }
                continue;
            }
            let before = spent.lock().ok().and_then(|it| it.get(&name).copied()).unwrap_or(0);
            let done = record.lock().map_or(0, |it| it.executions(&name));
            let (seconds, runs) = match args.until {
                Some(until) if done >= until => continue,
                Some(until) => (SLICE, until - done),
                None if before >= args.seconds => continue,
                None => (SLICE.min(args.seconds - before), u64::MAX),
            };
            let found = folders.fuzz(&name, seconds, runs).and_then(|outcome| {
                let Ok(mut record) = record.lock() else { bail!("another target failed") };
                let finding = folders.finding(&name, &outcome)?;
                record.add(&name, &outcome.log, finding.is_some());
                record.write(&path)?;
                Ok(finding)
            });
            spent.lock().map(|mut it| *it.entry(name.clone()).or_default() += seconds).ok();
            match found {
                Ok(None) => queue.lock().map(|mut it| it.push(name)).unwrap_or_default(),
                Ok(Some(finding)) => fail(format!("{name}: {finding}")),
                Err(error) => fail(format!("{name}: {error:#}")),
            }
        }
    };
    thread::scope(|scope| (0..args.jobs.max(1)).for_each(|_| drop(scope.spawn(work))));
    spent.get_mut().map(BTreeMap::clear).ok();
    if !args.planted {
        record.lock().map(|it| print!("{it}")).ok();
    }
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "{} findings, shown above", failures.len());
    Ok(ExitCode::SUCCESS)
}

/// The files of `fuzz/fuzz_targets`.
fn targets(sources: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(sources.join("fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "rs") {
            names.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Targets that need the whole program, behind a feature.
const OF_PROGRAM: [&str; 3] = ["http", "record", "settings"];

/// Compiles the targets, and copies their programs to where no later build replaces them.
fn build(args: &Args) -> Result<(Folders, Vec<String>)> {
    let (sources, target) = (root().join("fuzz"), metadata(&root())?.1.join("fuzz"));
    let programs = target.join(if args.planted { "planted" } else { "programs" });
    let mut names = targets(&sources)?;
    let mut features = vec!["--features", if args.planted { "planted" } else { "" }];
    if args.light {
        names.retain(|it| !OF_PROGRAM.contains(&it.as_str()));
        features.push("--no-default-features");
    }
    let sh = Shell::new()?;
    sh.create_dir(&programs)?;
    let _wrapper = sh.push_env("RUSTC_WRAPPER", sources.join("instrument"));
    let _target = sh.push_env("CARGO_TARGET_DIR", &target);
    let manifest = sources.join("Cargo.toml");
    cmd!(sh, "cargo build --quiet --locked --bins --manifest-path {manifest} {features...}").run()?;
    for name in names.iter().map(String::as_str).chain(["seeds"]) {
        // Under a new name first: a running program cannot be written to.
        let (new, place) = (programs.join(format!("{name}.new")), programs.join(name));
        fs::copy(target.join("debug").join(name), &new).with_context(|| format!("no program {name}"))?;
        fs::rename(new, place)?;
    }
    Ok((Folders { sources, programs, inputs: target.join("inputs") }, names))
}

impl Folders {
    /// Runs a target on its corpus for some time or some executions.
    fn fuzz(&self, name: &str, seconds: u64, runs: u64) -> Result<Outcome> {
        let seeds = self.seeds(name)?;
        self.unpack(name)?;
        // Beyond this the fuzzer counts in 32 bits.
        let runs = format!("-runs={}", runs.min(i32::MAX as u64));
        self.start(name, &[format!("-max_total_time={seconds}"), runs], &[self.corpus(name), seeds])
    }

    fn start(&self, name: &str, options: &[String], inputs: &[PathBuf]) -> Result<Outcome> {
        let sh = Shell::new()?;
        let findings = self.inputs.join(name).join("findings");
        sh.create_dir(&findings)?;
        let (program, dictionary) =
            (self.programs.join(name), self.sources.join(format!("dict/{name}.dict")));
        let dictionary = dictionary.is_file().then(|| format!("-dict={}", dictionary.display()));
        let artifacts = format!("-artifact_prefix={}/", findings.display());
        // The harness measures the processor's time; this ends what never ends.
        let common = ["-timeout=20", "-max_len=65536", "-rss_limit_mb=4096", "-print_final_stats=1"];
        // Large blocks are kept, so that the system need not clear them for each input.
        let _blocks = sh.push_env("MALLOC_MMAP_THRESHOLD_", "33554432");
        let _kept = sh.push_env("MALLOC_TRIM_THRESHOLD_", "1073741824");
        let run = cmd!(sh, "{program} {common...} {artifacts} {dictionary...} {options...} {inputs...}");
        let output = run.quiet().ignore_status().output()?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        fs::write(self.inputs.join(name).join("log"), &log)?;
        Ok(Outcome { log, succeeded: output.status.success() })
    }

    /// The finding of a process. One that was only paused has none.
    fn finding(&self, name: &str, outcome: &Outcome) -> Result<Option<String>> {
        if outcome.succeeded {
            return Ok(None);
        }
        let told = |it: &&str| {
            it.contains("panicked at") || it.starts_with("==") || it.contains("memory allocation")
        };
        let Some(file) = outcome.log.rsplit_once("Test unit written to ").and_then(|it| it.1.lines().next())
        else {
            bail!("the target did not run: {}", outcome.log.lines().last().unwrap_or_default());
        };
        if file.contains("timeout-") && self.start(name, &[], &[file.into()])?.succeeded {
            fs::remove_file(file)?;
            return Ok(None);
        }
        let lines = outcome.log.lines().collect::<Vec<_>>();
        let at = lines.iter().position(told).unwrap_or(0);
        Ok(Some(format!("{}\n  input {file}", lines[at..lines.len().min(at + 4)].join("\n  "))))
    }

    /// Checks that the seeds are no finding, and that from them one is found in time.
    fn find_planted(&self, name: &str) -> Result<()> {
        let seeds = self.seeds(name)?;
        let replayed = self.start(name, &["-runs=0".to_owned()], std::slice::from_ref(&seeds))?;
        ensure!(replayed.succeeded, "the seeds meet the planted bug's condition:\n{}", replayed.log);
        let time = format!("-max_total_time={PLANTED}");
        let outcome = self.start(name, &[time], &[seeds])?;
        let finding = self.finding(name, &outcome)?.unwrap_or_default();
        ensure!(
            finding.contains("planted bug"),
            "expected the planted bug within {PLANTED} s, got {finding:?}"
        );
        println!(
            "{name}: found its planted bug after {} executions",
            record::number(&outcome.log, "stat::number_of_executed_units:")
        );
        Ok(())
    }
}
