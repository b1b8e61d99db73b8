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

const STEPS: u64 = 120;
const KILLS: u64 = 6;
const FOLDER: &str = "DDT_TRAIN_TEST_FOLDER";

/// The process to kill: this test alone, run with a folder in the environment; without one it is empty.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        train(&PathBuf::from(folder), STEPS, |_| true);
    }
}

#[test]
fn being_killed_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    let folder = tempfile::tempdir().unwrap();
    let killed = (0..KILLS).filter(|it| kill_once(folder.path(), *it)).count();
    assert!(killed >= 3, "only {killed} processes were killed before their end");
    train(folder.path(), STEPS, |_| true);
    assert_eq!(outcome(folder.path()), outcome(whole.path()));
}

/// Starts the process, lets it train a little, and kills it; false when it had come to its end.
fn kill_once(folder: &Path, number: u64) -> bool {
    let log = || fs::metadata(folder.join("log.jsonl")).map_or(0, |it| it.len());
    let draw = |what, bound| CounterNoise::new(4, Purpose::Shuffle, number, what).below(bound).unwrap();
    // The log may first become shorter; a line has some 70 bytes.
    let enough = log() + 70 * (1 + draw(0, 6));
    let mut child = start(folder);
    while log() < enough && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_micros(draw(1, 20_000)));
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::child", "--test-threads", "1"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
