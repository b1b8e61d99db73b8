//! Processes that are killed, alone and among others, end with the bytes of one that never was.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::npz::stub::Run;

const RUN: &str = "DDT_NPZ_TEST_RUN";
const IMAGES: usize = 512;
const BATCH: usize = 4;
const KILLS: u64 = 20;

/// The process to kill: this test alone, run with a job in the environment; without one it is empty.
#[test]
fn child() {
    if let Some(run) = std::env::var_os(RUN) {
        let run: Run = serde_json::from_str(run.to_str().unwrap()).unwrap();
        run.finish().unwrap();
    }
}

fn start(run: &Run) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "npz::killed::child", "--test-threads", "1"])
        .env(RUN, serde_json::to_string(run).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The archive and its description.
fn outcome(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let folder = path.parent().unwrap();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2, "more than the archive and its description");
    (fs::read(path).unwrap(), fs::read(folder.join("images.npz.json")).unwrap())
}

fn uninterrupted() -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    assert_eq!(Run::new(&path, IMAGES, BATCH).finish().unwrap(), IMAGES / BATCH);
    outcome(&path)
}

/// Numbers that differ from one to the next.
fn draw(number: u64, below: u64) -> u64 {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 29;
    (state.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % below
}

#[test]
fn being_killed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = Run { pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let mut killed = 0;
    for number in 0..KILLS {
        let mut child = start(&run);
        // A process takes some milliseconds to begin; the whole job takes it half a second.
        sleep(Duration::from_micros(4_000 + draw(number, 40_000)));
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 5, "only {killed} processes were killed before their end");
    run.finish().unwrap();
    assert_eq!(outcome(&path), uninterrupted());
}

#[test]
fn others_take_over_from_one_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = |rank| Run { rank, world: 3, pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let mut children: Vec<Child> = (0..3).map(|rank| start(&run(rank))).collect();
    sleep(Duration::from_millis(60));
    let mut victim = children.remove(1);
    assert!(victim.try_wait().unwrap().is_none(), "the archive was finished too early");
    victim.kill().unwrap();
    victim.wait().unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(outcome(&path), uninterrupted());
}

#[test]
fn any_process_goes_on_where_several_were_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = |rank, world| Run { rank, world, pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let children: Vec<Child> = (0..3).map(|rank| start(&run(rank, 3))).collect();
    sleep(Duration::from_millis(60));
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(!path.exists());
    // Another number of processes, and only one of them.
    run(4, 7).finish().unwrap();
    assert_eq!(outcome(&path), uninterrupted());
}
