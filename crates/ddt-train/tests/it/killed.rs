//! A process that is killed again and again ends with the same bytes as one that never was.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use ddt_flow::{CounterNoise, Purpose};

use crate::runs::{outcome, train};

const STEPS: u64 = 200;
const KILLS: u64 = 20;
const FOLDER: &str = "DDT_TRAIN_TEST_FOLDER";
const THREADS: &str = "RAYON_NUM_THREADS";

/// The process to kill: this test only, run with a folder in the environment; without one it is empty.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        train(&PathBuf::from(folder), STEPS, |_| true);
    }
}

/// Twenty kills on one thread and twenty on two; the moments differ, and some fall into the writing of a
/// checkpoint, which takes most of such a small run's time.
#[test]
fn being_killed_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    for threads in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let killed = (0..KILLS).filter(|it| kill_once(folder.path(), KILLS * threads + it, threads)).count();
        assert!(killed >= 10, "only {killed} processes were killed before their end");
        train(folder.path(), STEPS, |_| true);
        assert_eq!(outcome(folder.path()), outcome(whole.path()), "{threads} threads");
    }
}

/// Starts the process, lets it train a little, and kills it; false when it had come to its end.
fn kill_once(folder: &Path, number: u64, threads: u64) -> bool {
    let log = || fs::metadata(folder.join("log.jsonl")).map_or(0, |it| it.len());
    let draw = |what, bound| CounterNoise::new(4, Purpose::Shuffle, number, what).below(bound).unwrap();
    // The log may first become shorter; a line has some 70 bytes.
    let enough = log() + 70 * (1 + draw(0, 6));
    let mut child = start(folder, threads);
    while log() < enough && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_micros(draw(1, 20_000)));
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

fn start(folder: &Path, threads: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::child", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env(THREADS, threads.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
