//! Every change of the disk is made to fail in turn, and is cut short by kills: nothing that was saved is lost, the
//! error names the path and its reason once, and the next run ends with the same bytes.

#![allow(clippy::print_stdout, reason = "the numbers of docs/RELIABILITY.md")]

use std::path::Path;

use candle_core::DType;
use ddt_files::faults::{Fault, Job, Outcome, Run, Swept, sweep};
use ddt_train::{FileSystem, FlowMatching, LatentCacheWriter, RunFolder, TrainConfig, Trainer};

use crate::{
    cache::{content, encoded},
    from_settings::{pixels, settings, train_on, with_photos},
    runs::{config, copy, data, sizes, trainer_of, try_train},
};

fn swept(begun: &Path, faults: &[Fault], run: &Run<'_>) -> Swept {
    let place = tempfile::tempdir().unwrap();
    copy(begun, place.path());
    // Events have times in them.
    let counts = |it: &Path| !it.ends_with(ddt_train::EventsFile::NAME);
    sweep(place.path(), faults, &Job { run, counts: &counts }).unwrap_or_else(|error| panic!("{error}"))
}

/// A trainer of one average, which makes fewer files.
fn trainer(steps: u64) -> Trainer<FlowMatching> {
    trainer_of(TrainConfig { ema_decays: vec![0.9], ..config(steps) }, &sizes(), &data())
}

/// Trains to the last of `steps`; every third is saved, and the last. Resumes from no step before `first`.
fn train(system: &FileSystem, folder: &Path, first: Option<u64>, steps: u64) -> Outcome {
    let resumed = try_train(system, &data(), trainer(steps), folder, |_| true)?;
    if resumed.step < first || !resumed.rejected.is_empty() {
        return Err(format!("expected a checkpoint of step {first:?}, got {resumed:?}").into());
    }
    Ok(())
}

fn first_steps(faults: &[Fault]) {
    let empty = tempfile::tempdir().unwrap();
    let swept = swept(empty.path(), faults, &|system, folder| train(system, folder, None, 3));
    println!("a run from nothing: {swept}");
    assert!(swept.changes > 100, "{swept}");
}

fn later_steps(faults: &[Fault]) {
    let saved = tempfile::tempdir().unwrap();
    train(&FileSystem::default(), saved.path(), None, 3).unwrap();
    let resumed = swept(saved.path(), faults, &|system, folder| train(system, folder, Some(3), 4));
    println!("a run from a checkpoint: {resumed}");
    // Saving the same step with other settings, which moves the old checkpoint aside.
    let again = swept(saved.path(), faults, &|system, folder| {
        let mut longer = trainer(4);
        let mut run = RunFolder::open_on(system, folder)?;
        let resumed = run.resume(&mut longer)?;
        run.save(&longer)?;
        match resumed.step {
            Some(3) if resumed.rejected.is_empty() => Ok(()),
            _ => Err(format!("expected the checkpoint of step 3, got {resumed:?}").into()),
        }
    });
    println!("a checkpoint saved again: {again}");
    assert!(resumed.changes > 50 && again.changes > 50, "{resumed}; {again}");
}

fn caches(faults: &[Fault]) {
    let empty = tempfile::tempdir().unwrap();
    let swept = swept(empty.path(), faults, &|system, folder| {
        let mut writer = LatentCacheWriter::open_on(system, &folder.join("cache"), content(), DType::F32, 2)?;
        if writer.is_finished() {
            return Ok(());
        }
        for image in writer.source_end()..5 {
            writer.push(encoded(image as usize, image as usize + 1), image + 1)?;
        }
        Ok(writer.finish()?)
    });
    println!("a latent cache: {swept}");
    assert!(swept.changes > 50, "{swept}");
}

fn trainings(faults: &[Fault]) {
    let begun = with_photos();
    let swept = swept(begun.path(), faults, &|system, folder| {
        let mut settings = settings(folder);
        (settings.images.test, settings.images.flips) = (None, false);
        (settings.train.total_images, settings.train.ema_decays) = (8, vec![0.5]);
        settings.watch.save_every_seconds = 0;
        settings.watch.samples_every = 0;
        Ok(train_on(system, &settings, &pixels(), |_| true).0.map(drop)?)
    });
    println!("a training from photos to weights: {swept}");
    assert!(swept.changes > 150, "{swept}");
}

/// All faults where the long checks ask for them, else these.
fn asked(quick: &[Fault]) -> Vec<Fault> {
    let all = std::env::var_os("DDT_FAULTS").is_some_and(|it| it == "all");
    if all { Fault::ALL.to_vec() } else { quick.to_vec() }
}

#[test]
fn a_run_and_its_checkpoints() {
    later_steps(&asked(&[Fault::Full, Fault::Kill]));
}

#[test]
fn a_run_from_nothing() {
    first_steps(&asked(&[Fault::Interrupted]));
}

#[test]
fn a_cache() {
    caches(&Fault::ALL);
}

/// The short check is that nothing is written past the file layer.
#[test]
fn a_training() {
    trainings(&asked(&[]));
}
