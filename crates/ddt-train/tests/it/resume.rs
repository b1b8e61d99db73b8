//! A run that was stopped ends with the same bytes as one that was not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ddt_checkpoint::sha256_file;
use ddt_train::{RunFolder, TrainConfig, TrainError, Trainer};

use crate::runs::{config, sizes, train, trainer};

const STEPS: u64 = 14;

/// Hashes of the last checkpoint's files, and of the log.
fn outcome(folder: &Path) -> Vec<(String, String)> {
    let last = checkpoints(folder).pop().unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(&last).unwrap().map(|it| it.unwrap().path()).collect();
    files.push(folder.join("log.jsonl"));
    files.sort();
    let name = |it: &PathBuf| it.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|it| (name(it), sha256_file(it).unwrap())).collect()
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder.join("checkpoints")).unwrap().map(|it| it.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn stopping_anywhere_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    let expected = outcome(whole.path());
    assert!(expected.iter().any(|it| it.0 == "average-1.safetensors"));
    for stop in [1, 2, 3, 4, 8, 13] {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), STEPS, |step| step < stop);
        // What a save that was cut off leaves behind: a folder under another name.
        fs::create_dir_all(folder.path().join("checkpoints/.partial-step-0000000006")).unwrap();
        train(folder.path(), STEPS, |_| true);
        assert_eq!(outcome(folder.path()), expected, "stopped at step {stop}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |threads| {
        let folder = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(folder.path(), STEPS, |_| true));
        outcome(folder.path())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn the_newest_whole_checkpoint_wins() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 7);
    let newest = checkpoints(folder.path()).pop().unwrap();
    assert!(newest.ends_with("step-0000000006"));
    fs::write(newest.join("second-moments.safetensors"), b"cut").unwrap();
    let mut resumed = trainer(STEPS);
    assert!(RunFolder::open(folder.path()).unwrap().resume(&mut resumed).unwrap());
    assert_eq!(resumed.steps(), 3);
    fs::remove_file(checkpoints(folder.path())[0].join("state.json")).unwrap();
    let refused = RunFolder::open(folder.path()).unwrap().resume(&mut trainer(STEPS));
    assert!(matches!(refused, Err(TrainError::NoValidCheckpoint { .. })));
}

#[test]
fn another_run_is_refused_but_a_longer_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 5);
    let resume = |cfg: TrainConfig| {
        let mut trainer = Trainer::new(cfg, &sizes(), &candle_core::Device::Cpu).unwrap();
        RunFolder::open(folder.path()).unwrap().resume(&mut trainer)
    };
    let refused = resume(TrainConfig { seed: 1, ..config(STEPS) });
    assert!(matches!(refused, Err(TrainError::OtherRun { what: "settings", .. })));
    assert!(resume(config(2 * STEPS)).unwrap());
}

#[test]
fn two_processes_cannot_hold_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunFolder::open(folder.path()).unwrap();
    assert!(matches!(RunFolder::open(folder.path()), Err(TrainError::Locked { .. })));
    drop(first);
    RunFolder::open(folder.path()).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(RunFolder::open(&file.join("run")), Err(TrainError::Io { .. })));
}
