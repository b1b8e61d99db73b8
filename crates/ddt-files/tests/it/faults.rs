//! Every step that changes the disk is made to fail in turn: the previous file stays intact, the error names a
//! path and its reason once, and the next run ends with the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use ddt_files::npz::ArrayData;
use ddt_files::{FileError, FileSystem, Step};

use crate::image_archives::Run;

const REASON: &str = "no room left, says the test";

/// The steps that failed, with their paths.
type Failed = Arc<Mutex<Vec<(Step, PathBuf)>>>;

/// A disk on which one step fails, and all after it too if it is `full`.
fn failing(at: usize, full: bool) -> (FileSystem, Failed) {
    let count = AtomicUsize::new(0);
    let failed = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&failed);
    let system = FileSystem::checked_by(move |step, path| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        if number == at || full && number > at {
            log.lock().unwrap().push((step, path.to_owned()));
            return Err(io::Error::new(io::ErrorKind::StorageFull, REASON));
        }
        Ok(())
    });
    (system, failed)
}

/// All files below a folder with their bytes, but those that an interrupted write leaves beside its place.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.file_name().unwrap().to_string_lossy().starts_with(".writing-") {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

/// Runs `write` in a fresh folder that `prepare` fills, with each of its steps failing in turn.
///
/// After each failure, `prepared` files are as they were or as `write` leaves them; then `write` runs again.
fn every_step(
    prepare: impl Fn(&Path),
    write: impl Fn(&FileSystem, &Path) -> Result<(), FileError>,
) -> BTreeMap<Step, usize> {
    let relative = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let strip = |path: PathBuf| path.strip_prefix(folder).unwrap().to_owned();
        files(folder).into_iter().map(|(path, bytes)| (strip(path), bytes)).collect()
    };
    let fresh = || {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        folder
    };
    let folder = fresh();
    let old = relative(folder.path());
    write(&FileSystem::default(), folder.path()).unwrap();
    let new = relative(folder.path());

    let mut steps = BTreeMap::new();
    for full in [false, true] {
        for at in 0.. {
            let folder = fresh();
            let (system, failed) = failing(at, full);
            let outcome = write(&system, folder.path());
            let Some((step, path)) = failed.lock().unwrap().first().cloned() else {
                outcome.unwrap();
                assert!(at > 0);
                break;
            };
            *steps.entry(step).or_default() += 1;
            let place = format!("{step:?} of {} (step {at}, full: {full})", path.display());
            match outcome {
                // Clearing up is not part of the promise.
                Ok(()) => assert_eq!(step, Step::Remove, "{place}"),
                Err(error) => {
                    let text = format!("{:#}", anyhow::Error::from(error));
                    assert!(text.contains(&*folder.path().to_string_lossy()), "{place}: {text}");
                    assert_eq!(text.matches(REASON).count(), 1, "{place}: {text}");
                }
            }
            for (path, bytes) in &old {
                let got = relative(folder.path()).remove(path).unwrap();
                assert!(got == *bytes || got == new[path], "{place}: {} changed", path.display());
            }
            write(&FileSystem::default(), folder.path()).unwrap();
            assert_eq!(relative(folder.path()), new, "{place}");
        }
    }
    steps
}

#[test]
fn checkpoints() {
    let tensors = |value: f32| {
        let large = Tensor::full(value, 40_000, &Device::Cpu).unwrap();
        BTreeMap::from([
            ("large".to_string(), large),
            ("one".to_string(), Tensor::new(1u8, &Device::Cpu).unwrap()),
        ])
    };
    let write = |system: &FileSystem, folder: &Path, value| {
        system
            .write_safetensors(&folder.join("weights.safetensors"), &tensors(value), &BTreeMap::new())
            .map(drop)
    };
    let steps = every_step(
        |folder| write(&FileSystem::default(), folder, 1.0).unwrap(),
        |system, folder| write(system, folder, 2.0),
    );
    assert!(steps[&Step::Write] > 2 && steps[&Step::Sync] > 0 && steps[&Step::Rename] > 0, "{steps:?}");
    assert!(steps[&Step::SyncFolder] > 0 && steps[&Step::Open] > 0, "{steps:?}");
}

#[test]
fn arrays() {
    let write = |system: &FileSystem, folder: &Path, value: f64| {
        let values = vec![value; 20_000];
        let path = folder.join("statistics.npz");
        system.write_npz(
            &path,
            &[("mu", &[20_000], ArrayData::F64(&values)), ("n", &[1], ArrayData::I64(&[3]))],
        )
    };
    let steps = every_step(
        |folder| write(&FileSystem::default(), folder, 1.0).unwrap(),
        |system, folder| write(system, folder, 2.0),
    );
    assert!(steps.len() >= 5, "{steps:?}");
}

#[test]
fn archives_of_images() {
    let steps = every_step(
        |folder| fs::write(folder.join("other.npz"), "not to be touched").unwrap(),
        |system, folder| {
            let outcome = Run::new(&folder.join("images.npz"), 10, 4).finish_on(system).map(drop);
            // What an interrupted write leaves is in the work folder, and goes with it.
            let names = fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name());
            let left: Vec<_> = names.filter(|it| it.to_string_lossy().starts_with(".writing-")).collect();
            assert!(left.is_empty(), "{left:?}");
            outcome
        },
    );
    for step in
        [Step::CreateFolder, Step::Open, Step::Write, Step::Resize, Step::Sync, Step::Rename, Step::Remove]
    {
        assert!(steps.get(&step).is_some_and(|it| *it > 0), "{step:?} of {steps:?}");
    }
}
