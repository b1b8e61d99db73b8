//! `ddt dataset`: its archive, kills that change nothing, and refusals.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use ddt::{
    Pipeline, PipelineConfig, Request,
    files::npz::NpzFile,
    flow::{CounterNoise, Purpose, TimeGrid},
    picture::read_png,
};
use serde_json::{Value, json};

use crate::{command, names_in, refuse, succeed};

fn line(more: &str) -> String {
    format!("dataset --weights demo --steps 2 --out data.npz {more}")
}

fn images(folder: &Path) -> Vec<Vec<u8>> {
    let file = NpzFile::open(folder.join("data.npz")).unwrap();
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
fn rows_are_the_images_of_the_order_and_described_as_in_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let result = succeed(folder, &line("--class ship,cat --count 5 --batch 3 --seed 6 --png-folder png/"));
    assert!(
        result.starts_with("5 images of 32 x 32 pixels, 2 classes\nwrote data.npz and data.npz.json\n"),
        "{result}"
    );
    let rows = images(folder);

    // The same images from the library, class by class.
    let mut config = PipelineConfig::new("demo");
    config.grid = Some(TimeGrid::new(2, Some(0.04), 1.0).unwrap());
    let pipeline = Pipeline::new(&config).unwrap();
    let request = Request { seed: 6, batch: 3, ..Request::new([3, 8], 3) };
    let expected = pipeline.generate(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let order = CounterNoise::new(6, Purpose::Shuffle, 0, 0).permutation(5);
    for (row, k) in order.iter().enumerate() {
        let (class, column) = (k % 2, k / 2);
        assert_within_one_level(&rows[row], expected.images[3 * class + column].as_bytes());
        let (picture, _) = read_png(&folder.join(format!("png/{row:06}.png"))).unwrap();
        assert_eq!(picture.as_bytes(), rows[row]);
    }
    let labels: Vec<i64> = order.iter().map(|k| [3, 8][k % 2]).collect();
    let file = NpzFile::open(folder.join("data.npz")).unwrap();
    assert_eq!(file.array("arr_1").unwrap().i64_values().unwrap(), labels);

    let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(folder.join(name)).unwrap()).unwrap();
    let job = &read("data.npz.json")["job"];
    let record: Value = serde_json::from_str(&expected.record.to_json().unwrap()).unwrap();
    for (key, value) in record.as_object().unwrap() {
        assert_eq!(&job["protocol"][key], value, "{key}");
    }
    assert_eq!(job["protocol"]["class_names"], json!(["cat", "ship"]));
    assert_eq!((&read("png.json")["job"], names_in(&folder.join("png")).len()), (job, 5));
}

#[test]
fn the_batch_is_part_of_the_job_and_changes_no_picture() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let line = |batch: u32| line(&format!("--class 0,5 --count 3 --share uniform:2 --batch {batch}"));
    succeed(one.path(), &line(1));
    succeed(two.path(), &line(3));
    for (a, b) in images(one.path()).iter().zip(&images(two.path())) {
        assert_within_one_level(a, b);
    }
    let bytes = fs::read(one.path().join("data.npz")).unwrap();
    refuse(one.path(), &line(3), 1, &["--out", "batch is 1 there and 3 here"]);
    // What is complete stays.
    assert!(succeed(one.path(), &line(1)).contains("3 images"));
    assert_eq!(fs::read(one.path().join("data.npz")).unwrap(), bytes);
}

const JOB: &str = "--count 30 --batch 3";

fn start(folder: &Path, rank: &str, world: &str) -> Child {
    let line = line(&format!("{JOB} --rank {rank} --world-size {world}"));
    command(folder, &line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn files(folder: &Path) -> [Vec<u8>; 2] {
    assert_eq!(names_in(folder), ["data.npz", "data.npz.json"]);
    ["data.npz", "data.npz.json"].map(|name| fs::read(folder.join(name)).unwrap())
}

/// Bytes in a folder of work, but for the archive itself: they grow with every finished batch.
fn progress(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(it) if it.is_dir() => progress(&entry.path()),
        Ok(it) if entry.file_name() != "data" => it.len(),
        _ => 0,
    };
    entries.map_while(Result::ok).map(size).sum()
}

#[test]
fn kills_and_other_processes_change_no_byte() {
    let (whole, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeed(whole.path(), &line(JOB));
    let work = folder.path().join("data.npz.work");
    let mut killed = 0;
    for number in 0..5 {
        let before = progress(&work);
        let mut child = start(folder.path(), "0", "1");
        while progress(&work) == before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(number * 3));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "only {killed} processes were killed before their end");
    // Of three processes one is killed; the others take over.
    let mut children: Vec<Child> = ["0", "1", "2"].map(|rank| start(folder.path(), rank, "3")).into();
    let mut victim = children.remove(2);
    victim.kill().unwrap();
    victim.wait().unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(files(folder.path()), files(whole.path()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_finished_batches() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("data.npz.work");
    let line = line("--count 2000 --batch 3");
    let mut child =
        command(folder.path(), &line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !work.join("data").exists() {
        sleep(Duration::from_millis(1));
    }
    let before = progress(&work);
    while progress(&work) == before {
        sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!folder.path().join("data.npz").exists() && work.join("job.json").exists());
}

#[test]
fn mistakes_are_found_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (more, status, expected) in [
        ("--class trick", 1, &["--class", "did you mean 9 (truck)"][..]),
        ("--class 3 --count 1000001", 1, &["--count", "1 to 1000000 images of a class, got 1000001"]),
        ("--last-step 0", 1, &["--last-step", "got 0"]),
        ("--share absent.json", 1, &["absent.json"]),
        ("--rank 2 --world-size 2", 1, &["--rank, --world-size", "a rank from 0 to 1"]),
        ("--count 0", 2, &["1..=100000000"]),
        ("--count -3", 2, &["--count"]),
        ("--rank 0", 2, &["--world-size"]),
        ("--world-size 2", 2, &["--rank"]),
        ("--rank -1 --world-size 2", 2, &["--rank"]),
        ("--size 64", 2, &["256 or 512"]),
        ("--images 3", 2, &["--images"]),
    ] {
        refuse(folder, &line(more), status, expected);
    }
    for (out, expected) in [
        ("missing/data.npz", "create the folder missing first"),
        ("newfolder/", "add a file name"),
        ("data.npy", "ends in .npz"),
        ("/dev/null", ".npz"),
    ] {
        // Weights that are not there would be found later.
        refuse(folder, &format!("dataset --weights absent --out {out}"), 1, &["--out", expected]);
    }
    assert!(names_in(folder).is_empty());
}

#[test]
fn nothing_of_somebody_else_is_replaced_or_mixed_in() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let job = |more: &str| line(&format!("--count 2 --class 0 {more}"));
    let refused = |more: &str, expected: &[&str]| {
        refuse(folder, &job(more), 1, expected);
        assert!(!folder.join("data.npz.work").exists());
    };
    // A file in the archive's place, and in that of its description.
    fs::write(folder.join("data.npz"), "kept").unwrap();
    refused("", &["--out", "data.npz"]);
    assert_eq!(fs::read(folder.join("data.npz")).unwrap(), b"kept");
    fs::rename(folder.join("data.npz"), folder.join("data.npz.json")).unwrap();
    refused("", &["--out", "data.npz.json"]);
    assert_eq!(fs::read(folder.join("data.npz.json")).unwrap(), b"kept");
    fs::rename(folder.join("data.npz.json"), folder.join("file")).unwrap();

    // Folders of pictures.
    refused("--png-folder file", &["--png-folder", "file"]);
    refused("--png-folder file/png", &["--png-folder", "file"]);
    refused("--png-folder missing/png", &["--png-folder", "create the folder missing first"]);
    refused("--png-folder /dev/null", &["--png-folder"]);
    fs::create_dir(folder.join("photos")).unwrap();
    fs::write(folder.join("photos/000001.png"), "kept").unwrap();
    refused("--png-folder photos", &["--png-folder", "an unknown data set"]);
    fs::write(folder.join("photos/mine.jpg"), "kept").unwrap();
    refused("--png-folder photos", &["--png-folder", "\"mine.jpg\"", "new or empty folder"]);
    assert_eq!(fs::read(folder.join("photos/000001.png")).unwrap(), b"kept");
    assert!(!folder.join("photos.json").exists());

    // The next job does not mix with the one before, and the same one finds its pictures.
    fs::create_dir(folder.join("png")).unwrap();
    let with_folder = job("--png-folder png");
    succeed(folder, &with_folder);
    let other = "dataset --weights demo --steps 3 --count 1 --out other.npz --png-folder png";
    refuse(folder, other, 1, &["--png-folder", "png.json describes other images"]);
    fs::remove_file(folder.join("png/000001.png")).unwrap();
    succeed(folder, &with_folder);
    assert_eq!(names_in(&folder.join("png")), ["000000.png", "000001.png"]);
    fs::write(folder.join("png/000000.png"), "kept").unwrap();
    refuse(folder, &with_folder, 1, &["--png-folder", "000000.png is not the image of this data set"]);
    assert_eq!(fs::read(folder.join("png/000000.png")).unwrap(), b"kept");
}
