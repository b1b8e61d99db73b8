//! Data sets: what is in them, that kills change nothing, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use ddt_examples::cli::{Args as ImagenetArgs, Resolution};
use ddt_examples::generate::draw;
use ddt_examples::generate_dataset::cli::Args;
use ddt_examples::generate_dataset::{order, run};
use ddt_examples::job::Job;
use ddt_examples::png_file;
use ddt_examples::progress::Cancel;
use ddt_files::npz::{NpzFile, Shard};

use crate::no_hub;

/// Folder, rank and number of processes for the process to kill.
const CHILD: &str = "DDT_DATASET_TEST_CHILD";
const KILLS: u64 = 5;

/// A small job of the demo, into `data.npz` in `folder`.
fn args(folder: &Path, line: &[&str]) -> Args {
    let out = path(folder);
    let words = ["generate_dataset", "--weights", "demo", "--steps", "2", "--out", out.to_str().unwrap()];
    Args::try_parse_from(words.into_iter().chain(line.iter().copied())).unwrap()
}

fn path(folder: &Path) -> PathBuf {
    folder.join("data.npz")
}

fn outcome(folder: &Path, share: Shard, line: &[&str]) -> Result<String, String> {
    run(&args(folder, line), share, &no_hub(folder), &Cancel::default()).map_err(|error| format!("{error:#}"))
}

fn images(folder: &Path) -> Vec<Vec<u8>> {
    let file = NpzFile::open(path(folder)).unwrap();
    let array = file.array("arr_0").unwrap();
    let mut rows = array.rows(0..array.shape()[0]).unwrap();
    let mut buffer = vec![0; rows.left() * rows.row_bytes()];
    rows.read(&mut buffer).unwrap();
    buffer.chunks(rows.row_bytes()).map(<[u8]>::to_vec).collect()
}

#[track_caller]
fn assert_within_one_level(a: &[u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    let most = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(1), "images differ by {most:?} grey levels");
}

#[test]
fn rows_are_the_images_that_the_order_says() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("png");
    let line = ["--class", "ship,cat", "--count", "5", "--batch", "3", "--seed", "6"];
    let with_pictures = [&line[..], &["--png-folder", pictures.to_str().unwrap()]].concat();
    let summary = outcome(folder.path(), Shard::ALONE, &with_pictures).unwrap();
    assert!(summary.contains("5 images of 32 x 32 pixels, 2 classes"), "{summary}");
    let drawn = images(folder.path());

    // The same images as another program draws, in the order of the seed.
    let grid = folder.path().join("grid.png");
    let words = [
        "imagenet256",
        "--weights",
        "demo",
        "--steps",
        "2",
        "--class",
        "3,8",
        "--images",
        "3",
        "--seed",
        "6",
    ];
    let words = words.into_iter().chain(["--out", grid.to_str().unwrap()]);
    let args = ImagenetArgs::try_parse_from(words).unwrap();
    let job = Job::prepare(&args, Resolution::R256, &no_hub(folder.path())).unwrap();
    let expected = draw(&job, &job.load().unwrap(), &Cancel::default()).unwrap().images;
    let items = order::items(&[3, 8], 5, 6).unwrap();
    for (row, item) in items.iter().enumerate() {
        let at = job.items().iter().position(|it| it == item).unwrap();
        assert_within_one_level(&drawn[row], expected[at].pixels());
        let (picture, _) = png_file::read(&pictures.join(format!("{row:06}.png"))).unwrap();
        assert_eq!(picture.pixels(), drawn[row]);
    }
    let labels: Vec<i64> = items.iter().map(|it| it.label.into()).collect();
    let file = NpzFile::open(path(folder.path())).unwrap();
    assert_eq!(file.array("arr_1").unwrap().i64_values().unwrap(), labels);

    let text = fs::read(folder.path().join("data.npz.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let protocol = &manifest["job"]["protocol"];
    assert_eq!((&protocol["classes"], &protocol["seed"]), (&serde_json::json!("3,8"), &serde_json::json!(6)));
    assert!(protocol["weights"].as_str().unwrap().contains(" 4x4 sha256:"), "{protocol}");
    assert!(protocol["autoencoder"].as_str().unwrap().starts_with("tiny-flux2 sha256:"), "{protocol}");
    assert_eq!(protocol["recompute_steps"], serde_json::Value::Null);
}

#[test]
fn batches_change_no_picture() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let line = ["--class", "0,5", "--count", "3", "--share", "uniform:2", "--batch"];
    outcome(one.path(), Shard::ALONE, &[&line[..], &["1"]].concat()).unwrap();
    outcome(two.path(), Shard::ALONE, &[&line[..], &["3"]].concat()).unwrap();
    for (a, b) in images(one.path()).iter().zip(&images(two.path())) {
        assert_within_one_level(a, b);
    }
    let bytes = fs::read(path(one.path())).unwrap();
    let message = outcome(one.path(), Shard::ALONE, &[&line[..], &["3"]].concat()).unwrap_err();
    assert!(message.contains("batch is 1 there and 3 here"), "{message}");
    let summary = outcome(one.path(), Shard::ALONE, &[&line[..], &["1"]].concat()).unwrap();
    assert!(summary.contains("3 images"), "{summary}");
    assert_eq!(fs::read(path(one.path())).unwrap(), bytes);
}

const JOB: [&str; 4] = ["--count", "30", "--batch", "3"];

/// The process to kill: this test alone, run with a folder in the environment; without one it is empty.
#[test]
fn child() {
    if let Ok(child) = std::env::var(CHILD) {
        let words: Vec<&str> = child.splitn(3, ' ').collect();
        let share = Shard::new(words[0].parse().unwrap(), words[1].parse().unwrap()).unwrap();
        outcome(Path::new(words[2]), share, &JOB).unwrap();
    }
}

fn start(folder: &Path, rank: usize, world: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dataset::child", "--test-threads", "1"])
        .env(CHILD, format!("{rank} {world} {}", folder.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn files(folder: &Path) -> [Vec<u8>; 2] {
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2, "more than the archive and its description");
    [fs::read(path(folder)).unwrap(), fs::read(folder.join("data.npz.json")).unwrap()]
}

/// Bytes of all logs of finished batches.
fn logged(folder: &Path) -> u64 {
    let Ok(slots) = fs::read_dir(folder.join("data.npz.work/slots")) else { return 0 };
    slots.map(|it| it.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn kills_and_other_processes_change_no_byte() {
    let whole = tempfile::tempdir().unwrap();
    outcome(whole.path(), Shard::ALONE, &JOB).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut killed = 0;
    for number in 0..KILLS {
        let before = logged(folder.path());
        let mut child = start(folder.path(), 0, 1);
        while logged(folder.path()) == before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(number * 3));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "only {killed} processes were killed before their end");
    // Of three processes one is killed; the others take over.
    let mut children: Vec<Child> = (0..3).map(|rank| start(folder.path(), rank, 3)).collect();
    let mut victim = children.remove(2);
    victim.kill().unwrap();
    victim.wait().unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(files(folder.path()), files(whole.path()));
}

#[test]
fn what_cannot_be_done_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |line: &[&str], expected: &[&str]| {
        let message = outcome(folder.path(), Shard::ALONE, line).unwrap_err();
        for part in expected {
            assert!(message.contains(part), "{line:?}: expected {part:?} in {message:?}");
        }
        assert!(!path(folder.path()).exists());
    };
    refused(&["--class", "trick"], &["--class", "did you mean 9 (truck)"]);
    refused(&["--class", "3", "--count", "1000001"], &["--count", "at most 1000000 images"]);
    refused(&["--last-step", "0"], &["--last-step", "got 0"]);
    refused(&["--share", "absent.json"], &["absent.json"]);
    fs::write(folder.path().join("file"), "kept").unwrap();
    let file = folder.path().join("file/png");
    refused(&["--png-folder", file.to_str().unwrap()], &["--png-folder"]);
    // Somebody's file in the archive's place.
    fs::write(path(folder.path()), "kept").unwrap();
    let message = outcome(folder.path(), Shard::ALONE, &["--count", "1"]).unwrap_err();
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(fs::read(path(folder.path())).unwrap(), b"kept");
}

#[test]
fn an_interrupted_run_keeps_its_batches() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    cancel.request();
    let error = run(&args(folder.path(), &JOB), Shard::ALONE, &no_hub(folder.path()), &cancel).unwrap_err();
    assert!(error.is::<ddt_examples::generate::Interrupted>(), "{error:#}");
    assert!(!path(folder.path()).exists());
    assert!(folder.path().join("data.npz.work/job.json").exists());
}
