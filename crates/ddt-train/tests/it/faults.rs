//! Every step that changes the disk is made to fail in turn: nothing that was saved is lost, the error names the
//! path and its reason once, and the next run ends with the same bytes.

use std::{
    error::Error,
    fs,
    io::{Error as IoError, ErrorKind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::DType;
use ddt_files::{FileSystem, sha256_file};
use ddt_train::{FlowMatching, LatentCacheWriter, RunFolder, TrainConfig, TrainError, Trainer};

use crate::{
    cache::{content, encoded},
    runs::{config, copy, data, outcome, sizes, trainer_of, try_train},
};

const REASON: &str = "no room left, says the test";

/// A disk on which one step fails, and all after it too if it is `full`; and the number of steps so far.
fn failing(at: usize, full: bool) -> (FileSystem, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let steps = Arc::clone(&count);
    let system = FileSystem::checked_by(move |_, _| {
        let number = steps.fetch_add(1, Ordering::Relaxed);
        let fails = number == at || full && number > at;
        if fails { Err(IoError::new(ErrorKind::StorageFull, REASON)) } else { Ok(()) }
    });
    (system, count)
}

/// A trainer of one average, which makes fewer files.
fn trainer(steps: u64) -> Trainer<FlowMatching> {
    trainer_of(TrainConfig { ema_decays: vec![0.9], ..config(steps) }, &sizes(), &data())
}

/// Trains to the last of `steps`; every third is saved, and the last.
fn train(system: &FileSystem, folder: &Path, steps: u64) -> Result<(), TrainError> {
    try_train(system, &data(), trainer(steps), folder, |_| true)
}

/// Runs `write` in a copy of a folder, with each of its steps failing in turn, and in the second of two `rounds`
/// all steps after it too; `check` follows every failure. Returns the number of failures.
fn every_step(
    begun: &Path,
    rounds: usize,
    write: impl Fn(&FileSystem, &Path) -> Result<(), TrainError>,
    check: impl Fn(&Path, &str),
) -> usize {
    let mut tried = 0;
    for full in [false, true].into_iter().take(rounds) {
        for at in 0.. {
            let folder = tempfile::tempdir().unwrap();
            copy(begun, folder.path());
            let (system, count) = failing(at, full);
            let written = write(&system, folder.path());
            if count.load(Ordering::Relaxed) <= at {
                written.unwrap();
                break;
            }
            tried += 1;
            let place = format!("step {at}, full: {full}");
            let Err(error) = written else { panic!("expected an error: {place}") };
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            assert!(text.contains(&*folder.path().to_string_lossy()), "{place}: {text}");
            assert_eq!(text.matches(REASON).count(), 1, "{place}: {text}");
            check(folder.path(), &place);
        }
    }
    tried
}

#[test]
fn a_run_and_its_checkpoints() {
    let real = FileSystem::default();
    let saved = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    train(&real, saved.path(), 3).unwrap();
    let third = outcome(saved.path());
    let finish = |folder: &Path, steps, expected: &[(String, String)], place: &str| {
        train(&real, folder, steps).unwrap();
        assert_eq!(outcome(folder), expected, "{place}");
    };
    // From nothing.
    let write = |system: &FileSystem, folder: &Path| train(system, folder, 3);
    let tried = every_step(empty.path(), 1, write, |folder, place| finish(folder, 3, &third, place));
    assert!(tried > 60, "{tried}");

    // From a checkpoint, which is never lost.
    let whole = tempfile::tempdir().unwrap();
    copy(saved.path(), whole.path());
    train(&real, whole.path(), 4).unwrap();
    let fourth = outcome(whole.path());
    let write = |system: &FileSystem, folder: &Path| train(system, folder, 4);
    let tried = every_step(saved.path(), 2, write, |folder, place| {
        let resumed = RunFolder::open(folder).unwrap().resume(&mut trainer(4)).unwrap();
        assert!(resumed.rejected.is_empty() && matches!(resumed.step, Some(3 | 4)), "{place}: {resumed:?}");
        finish(folder, 4, &fourth, place);
    });
    assert!(tried > 60, "{tried}");

    // Saving the same step with other settings, which moves the old checkpoint aside.
    let again = |system: &FileSystem, folder: &Path| -> Result<(), TrainError> {
        let mut longer = trainer(4);
        let mut run = RunFolder::open_on(system, folder)?;
        run.resume(&mut longer)?;
        run.save(&longer).map(drop)
    };
    let tried = every_step(saved.path(), 1, again, |folder, place| {
        let resumed = RunFolder::open(folder).unwrap().resume(&mut trainer(4)).unwrap();
        assert!(resumed.rejected.is_empty() && resumed.step == Some(3), "{place}: {resumed:?}");
        finish(folder, 4, &fourth, place);
    });
    assert!(tried > 40, "{tried}");
}

#[test]
fn a_cache() {
    let fill = |system: &FileSystem, folder: &Path| -> Result<(), TrainError> {
        let mut writer = LatentCacheWriter::open_on(system, &folder.join("cache"), content(), DType::F32, 2)?;
        for image in writer.source_end()..5 {
            writer.push(encoded(image as usize, image as usize + 1), image + 1)?;
        }
        writer.finish()
    };
    let files = |folder: &Path| {
        let entries = fs::read_dir(folder.join("cache")).unwrap().map(|it| it.unwrap().path());
        let visible = |it: &std::path::PathBuf| !it.file_name().unwrap().to_string_lossy().starts_with('.');
        let name = |it: &Path| it.file_name().unwrap().to_string_lossy().into_owned();
        let mut files: Vec<_> =
            entries.filter(visible).map(|it| (name(&it), sha256_file(&it).unwrap())).collect();
        files.sort();
        files
    };
    let whole = tempfile::tempdir().unwrap();
    fill(&FileSystem::default(), whole.path()).unwrap();
    let expected = files(whole.path());
    assert_eq!(expected.len(), 5);
    let empty = tempfile::tempdir().unwrap();
    let tried = every_step(empty.path(), 2, fill, |folder, place| {
        fill(&FileSystem::default(), folder).unwrap();
        assert_eq!(files(folder), expected, "{place}");
    });
    assert!(tried > 60, "{tried}");
}
