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
use ddt_train::{LatentCacheWriter, RunFolder, TrainError};

use crate::{
    cache::{content, encoded},
    runs::{data, outcome, train, trainer, try_train},
};

/// The last step of the runs; every third is saved, and the last.
const STEPS: u64 = 4;
const REASON: &str = "no room left, says the test";

/// A disk on which one step fails, and all after it too if it is `full`; and the number of steps so far.
fn failing(at: usize, full: bool) -> (FileSystem, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let steps = Arc::clone(&count);
    let system = FileSystem::checked_by(move |_, _| {
        let number = steps.fetch_add(1, Ordering::Relaxed);
        match number == at || full && number > at {
            true => Err(IoError::new(ErrorKind::StorageFull, REASON)),
            false => Ok(()),
        }
    });
    (system, count)
}

/// Runs `write` in a folder that `prepare` fills, with each of its steps failing in turn; `check` follows every
/// failure. Returns the number of steps.
fn every_step(
    prepare: impl Fn(&Path),
    write: impl Fn(&FileSystem, &Path) -> Result<(), TrainError>,
    check: impl Fn(&Path, &str),
) -> usize {
    let mut tried = 0;
    for full in [false, true] {
        for at in 0.. {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let (system, count) = failing(at, full);
            let written = write(&system, folder.path());
            if count.load(Ordering::Relaxed) <= at {
                written.unwrap();
                break;
            }
            tried += 1;
            let place = format!("step {at}, full: {full}");
            let error = written.expect_err(&place);
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
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    let expected = outcome(whole.path());
    let write =
        |system: &FileSystem, folder: &Path| try_train(system, &data(), trainer(STEPS), folder, |_| true);
    let finish = |folder: &Path, place: &str| {
        train(folder, STEPS, |_| true);
        assert_eq!(outcome(folder), expected, "{place}");
    };
    // From nothing.
    assert!(every_step(|_| {}, write, finish) > 100);
    // From a checkpoint, which is never lost.
    let saved = |folder: &Path| train(folder, STEPS, |step| step < 3);
    let tried = every_step(saved, write, |folder, place| {
        let resumed = RunFolder::open(folder).unwrap().resume(&mut trainer(STEPS)).unwrap();
        assert!(resumed.rejected.is_empty() && matches!(resumed.step, Some(3 | 4)), "{place}: {resumed:?}");
        finish(folder, place);
    });
    assert!(tried > 60, "{tried}");
    // Saving again what another length of the run makes different: the old checkpoint is moved aside.
    let longer = |system: &FileSystem, folder: &Path| -> Result<(), TrainError> {
        let mut trainer = trainer(2 * STEPS);
        let mut run = RunFolder::open_on(system, folder)?;
        run.resume(&mut trainer)?;
        run.save(&trainer).map(drop)
    };
    let tried = every_step(saved, longer, |folder, place| {
        let resumed = RunFolder::open(folder).unwrap().resume(&mut trainer(STEPS)).unwrap();
        assert!(resumed.rejected.is_empty() && resumed.step == Some(3), "{place}: {resumed:?}");
        finish(folder, place);
    });
    assert!(tried > 60, "{tried}");
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
    let tried = every_step(
        |_| {},
        fill,
        |folder, place| {
            fill(&FileSystem::default(), folder).unwrap();
            assert_eq!(files(folder), expected, "{place}");
        },
    );
    assert!(tried > 60, "{tried}");
}
