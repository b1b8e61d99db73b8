//! Several processes under mpirun end with the same bytes as one, whatever happens to any of them.
//!
//! Needs the feature `mpi` and Open MPI's mpirun; `.ci/run` has the stage.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use ddt::files::sha256_file;

use crate::small_run::{STEPS, begin, outcome, signal};

mod small_run;

/// A command of the program in a folder, as one process or several.
fn ddt(folder: &Path, processes: usize, line: &str) -> Command {
    let program = env!("CARGO_BIN_EXE_ddt");
    let mut command = Command::new(if processes == 1 { program } else { "mpirun" });
    if processes > 1 {
        let count = processes.to_string();
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", count.as_str(), program]);
    }
    command.current_dir(folder).args(line.split_whitespace()).env("DDT_RANK_TIMEOUT", "60");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `ddt train` with some arguments, each process on one thread.
fn train(folder: &Path, processes: usize, arguments: &str) -> Command {
    ddt(folder, processes, &format!("train settings.toml --threads 1 {arguments}"))
}

fn succeed(folder: &Path, processes: usize, arguments: &str) {
    let Output { status, stdout, stderr } = train(folder, processes, arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{processes} processes: {stderr}");
    assert_eq!(stdout.matches("wrote run/weights.safetensors").count(), 1, "{stdout}");
}

/// The outcome of one process that nothing disturbs.
fn undisturbed() -> Vec<(PathBuf, String)> {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    succeed(folder.path(), 1, "");
    outcome(folder.path())
}

/// Process ids of the ranks of a started mpirun, by rank; empty until all have started.
fn ranks(mpirun: &Child, processes: usize) -> Vec<u32> {
    let parent = format!("PPid:\t{}\n", mpirun.id());
    let mut found = vec![None; processes];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        if !String::from_utf8_lossy(&read("status")).contains(&parent) {
            continue;
        }
        let environment = read("environ");
        let rank = environment
            .split(|it| *it == 0)
            .filter_map(|it| {
                std::str::from_utf8(it).ok()?.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok()
            })
            .find(|it: &usize| *it < processes);
        if let (Some(rank), Ok(id)) = (rank, entry.file_name().to_string_lossy().parse()) {
            found[rank] = Some(id);
        }
    }
    found.into_iter().collect::<Option<Vec<u32>>>().unwrap_or_default()
}

/// Waits for all processes, no longer than so many seconds; returns their messages.
fn end(mut mpirun: Child, seconds: u64) -> (bool, String) {
    let begun = Instant::now();
    while mpirun.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(seconds) {
            mpirun.kill().unwrap();
            panic!("expected all processes to end within {seconds} s");
        }
        sleep(Duration::from_millis(10));
    }
    let Output { status, stderr, .. } = mpirun.wait_with_output().unwrap();
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Starts four processes, waits for the log to have a line, and sends one rank a signal.
fn disturb(folder: &Path, name: &str, rank: usize, limit: &str) -> (bool, String) {
    let mut command = train(folder, 4, "--images 100_000");
    let mpirun = command.env("DDT_RANK_TIMEOUT", limit).spawn().unwrap();
    let log = folder.join("run/log.jsonl");
    let begun = Instant::now();
    while fs::metadata(&log).map_or(0, |it| it.len()) == 0 || ranks(&mpirun, 4).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not start");
        sleep(Duration::from_millis(10));
    }
    signal(name, ranks(&mpirun, 4)[rank]);
    end(mpirun, 40)
}

#[test]
fn any_number_of_processes_ends_with_the_same_bytes() {
    let expected = undisturbed();
    for processes in [2, 4] {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path());
        succeed(folder.path(), processes, "");
        assert_eq!(outcome(folder.path()), expected, "{processes} processes");
    }
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    for (processes, images) in [(4, 16 * 6), (1, 16 * 13), (2, 16 * STEPS)] {
        succeed(folder.path(), processes, &format!("--images {images}"));
    }
    assert_eq!(outcome(folder.path()), expected, "4, 1 and 2 processes");
}

/// Whether a checkpoint is being written, or was when the ranks were killed.
fn is_saving(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder.join("run/checkpoints")) else { return false };
    entries.flatten().any(|it| it.file_name().to_string_lossy().starts_with(".partial-"))
}

#[test]
fn killed_ranks_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    // A fixed sequence of numbers: moments, ranks and numbers of processes.
    let mut state = 7u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let expected = undisturbed();
    let (mut kills, mut inside, mut tries) = (0, 0, 0);
    while kills < 20 {
        tries += 1;
        assert!(tries < 100, "{kills} kills in {tries} tries");
        let processes = [2, 4][next(2) as usize];
        let mpirun = train(folder.path(), processes, "").spawn().unwrap();
        sleep(Duration::from_millis(150 + next(1200)));
        let ids = ranks(&mpirun, processes);
        let victim = ids.get(next(processes as u64) as usize);
        // Every other kill is aimed at the writing of a checkpoint.
        let since = Instant::now();
        while kills % 2 == 1 && !is_saving(folder.path()) && since.elapsed() < Duration::from_secs(2) {}
        victim.iter().for_each(|id| signal("KILL", **id));
        match end(mpirun, 30) {
            // Done in spite of all kills before: again from the beginning.
            (true, _) => {
                assert_eq!(outcome(folder.path()), expected);
                fs::remove_dir_all(folder.path().join("run")).unwrap();
            }
            (false, _) if victim.is_some() => {
                kills += 1;
                inside += u32::from(is_saving(folder.path()));
            }
            (false, _) => {}
        }
    }
    assert!(inside >= 5, "{inside} of {kills} kills were inside the writing of a checkpoint");
    succeed(folder.path(), 2, "");
    assert_eq!(outcome(folder.path()), expected);
}

#[test]
fn a_stuck_rank_is_named_and_all_end() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    let (finished, messages) = disturb(folder.path(), "STOP", 2, "3");
    let named = "error: rank 2 of 4 has not answered for 3 s";
    assert!(!finished && messages.matches("error: ").count() == 1 && messages.contains(named), "{messages}");
    succeed(folder.path(), 2, "");
}

#[test]
fn a_rank_that_is_asked_to_stop_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    let (finished, messages) = disturb(folder.path(), "INT", 3, "60");
    assert!(!finished && messages.contains("rank 3 was asked to stop"), "{messages}");
    assert!(messages.contains("saved run/checkpoints/step-") && !messages.contains("error: "), "{messages}");
    succeed(folder.path(), 4, "");
}

#[test]
fn photos_that_any_rank_skips_are_named() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    let settings = fs::read_to_string(folder.path().join("settings.toml")).unwrap();
    let settings = settings.replace("size = 16,", "size = 16, skip_corrupt = true,");
    fs::write(folder.path().join("settings.toml"), settings).unwrap();
    // Of a batch of 64, those of the first rank and of the second.
    for photo in ["photos/cat/07.png", "photos/dog/07.png"] {
        fs::write(folder.path().join(photo), b"no image").unwrap();
    }
    let Output { status, stderr, .. } = train(folder.path(), 2, "--images 16").output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.contains("cat/07.png") && stderr.contains("dog/07.png"), "{stderr}");
}

#[test]
fn other_numbers_of_processes_are_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    let Output { status, stderr, .. } = train(folder.path(), 3, "").output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    let message = "error: rank 0: 3 processes cannot share 8 micro-batches of a step";
    assert!(
        !status.success() && stderr.matches("error: ").count() == 1 && stderr.contains(message),
        "{stderr}"
    );
}

#[test]
fn data_sets_and_evaluations_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for processes in [1, 2] {
        let name = format!("of-{processes}");
        let lines = [
            format!("dataset --count 300 --batch 10 --steps 2 --threads 1 --out {name}.npz"),
            format!(
                "evaluate of-1.npz of-1.npz --extractor cifar10-classifier --threads 1 --cache {name} --out {name}.json"
            ),
        ];
        for line in lines {
            let Output { status, stderr, .. } = ddt(folder, processes, &line).output().unwrap();
            assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
        }
    }
    for ending in ["npz", "json"] {
        let hash = |it: u32| sha256_file(&folder.join(format!("of-{it}.{ending}"))).unwrap();
        assert_eq!(hash(1), hash(2), "{ending}");
    }
}
