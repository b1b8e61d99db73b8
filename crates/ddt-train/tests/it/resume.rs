//! A run that was stopped, or killed again and again, ends with the same bytes as one that was not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use ddt_flow::{CounterNoise, Purpose};
use ddt_model::DdtConfig;
use ddt_train::{LatentDataset, Precision, Resumed, RunFolder, TrainConfig, TrainError};

use crate::runs::{config, data, images, names, outcome, sizes, train, train_on, trainer, trainer_of};

const STEPS: u64 = 14;

#[test]
fn stopping_anywhere_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    let expected = outcome(whole.path());
    assert!(expected.iter().any(|it| it.0 == "average-1.safetensors"));
    assert_eq!(names(whole.path()), ["step-0000000012", "step-0000000014"]);
    for stop in [1, 2, 3, 4, 8, 13] {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), STEPS, |step| step < stop);
        train(folder.path(), STEPS, |_| true);
        assert_eq!(outcome(folder.path()), expected, "stopped at step {stop}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    // Large enough that GEMMs, kernels and the optimiser split their work.
    let sizes = DdtConfig { hidden_size: 64, ..sizes() };
    let data = images(4, 9);
    for precision in [Precision::F32, Precision::Bf16] {
        let cfg = TrainConfig { precision, batch_size: 32, total_images: 32 * 4, ..config(4) };
        let run = |threads| {
            let folder = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let trainer = trainer_of(cfg.clone(), &sizes, &data);
            pool.install(|| train_on(&data, trainer, folder.path(), |_| true));
            outcome(folder.path())
        };
        let one = run(1);
        assert_eq!(one, run(2), "{precision:?}");
        assert_eq!(one, run(3), "{precision:?}");
    }
}

#[test]
fn another_run_is_refused_but_a_longer_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 5);
    let resume = |cfg: TrainConfig, sizes: DdtConfig, data: LatentDataset| {
        let mut trainer = trainer_of(cfg, &sizes, &data);
        RunFolder::open(folder.path()).unwrap().resume(&mut trainer)
    };
    let refused = |outcome| match outcome {
        Err(TrainError::OtherRun { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let other_seed = TrainConfig { seed: 1, ..config(STEPS) };
    assert_eq!(refused(resume(other_seed, sizes(), data())), "settings");
    let wider = DdtConfig { hidden_size: 32, ..sizes() };
    assert_eq!(refused(resume(config(STEPS), wider, data())), "network or loss");
    assert_eq!(refused(resume(config(STEPS), sizes(), images(2, 10))), "training data");
    let resumed = resume(config(2 * STEPS), sizes(), data()).unwrap();
    assert_eq!(resumed, Resumed { step: Some(3), rejected: Vec::new() });
}

#[test]
fn saving_again_keeps_what_is_equal_and_replaces_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 3);
    let mut run = RunFolder::open(folder.path()).unwrap();
    let state = folder.path().join("checkpoints/step-0000000003/state.json");
    let written = || fs::metadata(&state).unwrap().modified().unwrap();

    let mut same = trainer(STEPS);
    run.resume(&mut same).unwrap();
    let before = written();
    run.save(&same).unwrap();
    assert_eq!(written(), before);

    let mut longer = trainer(2 * STEPS);
    run.resume(&mut longer).unwrap();
    run.save(&longer).unwrap();
    assert!(written() > before);
    assert_eq!(names(folder.path()), ["step-0000000003"]);
    assert_eq!(run.resume(&mut longer).unwrap().step, Some(3));
}

#[test]
fn two_processes_cannot_hold_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/with/its/parents");
    let first = RunFolder::open(&path).unwrap();
    assert!(matches!(RunFolder::open(&path), Err(TrainError::Locked { .. })));
    drop(first);
    RunFolder::open(&path).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(RunFolder::open(&file.join("run")), Err(TrainError::File(_))));
}

#[test]
fn sixteen_bits_and_micro_batches_resume_exactly_too() {
    let cfg = TrainConfig { precision: Precision::Bf16, micro_batch: Some(3), ..config(STEPS) };
    let run = |stop: u64| {
        let folder = tempfile::tempdir().unwrap();
        let train = |stop: u64| {
            train_on(&data(), trainer_of(cfg.clone(), &sizes(), &data()), folder.path(), |step| step < stop)
        };
        train(stop);
        train(u64::MAX);
        outcome(folder.path())
    };
    assert_eq!(run(5), run(u64::MAX));
}

const LONG: u64 = 200;
const KILLS: u64 = 20;
const FOLDER: &str = "DDT_TRAIN_TEST_FOLDER";
const SIXTEEN_BITS: &str = "DDT_TRAIN_TEST_SIXTEEN_BITS";
const THREADS: &str = "RAYON_NUM_THREADS";

/// The process to kill: this test only, run with a folder in the environment; without one it is empty.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let sixteen_bits = std::env::var(SIXTEEN_BITS).unwrap() == "true";
        train_long(&PathBuf::from(folder), if sixteen_bits { Precision::Bf16 } else { Precision::F32 });
    }
}

fn train_long(folder: &Path, precision: Precision) {
    let cfg = TrainConfig { precision, ..config(LONG) };
    train_on(&data(), trainer_of(cfg, &sizes(), &data()), folder, |_| true);
}

/// Twenty kills on one thread and twenty on two, in both precisions; the moments differ, and some fall into the
/// writing of a checkpoint, which takes most of such a small run's time.
#[test]
fn being_killed_changes_nothing() {
    for precision in [Precision::F32, Precision::Bf16] {
        let whole = tempfile::tempdir().unwrap();
        train_long(whole.path(), precision);
        for threads in [1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let start = || start(folder.path(), threads, precision);
            let killed =
                (0..KILLS).filter(|it| kill_once(folder.path(), KILLS * threads + it, start)).count();
            assert!(killed >= 10, "only {killed} processes were killed before their end");
            train_long(folder.path(), precision);
            assert_eq!(outcome(folder.path()), outcome(whole.path()), "{precision:?}, {threads} threads");
        }
    }
}

/// Starts the process, lets it train a little, and kills it; false when it had come to its end.
fn kill_once(folder: &Path, number: u64, start: impl FnOnce() -> Child) -> bool {
    let log = || fs::metadata(folder.join("log.jsonl")).map_or(0, |it| it.len());
    let draw = |what, bound| CounterNoise::new(4, Purpose::Shuffle, number, what).below(bound).unwrap();
    // The log may first become shorter; a line has some 70 bytes.
    let enough = log() + 70 * (1 + draw(0, 6));
    let mut child = start();
    while log() < enough && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    sleep(Duration::from_micros(draw(1, 20_000)));
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

fn start(folder: &Path, threads: u64, precision: Precision) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "resume::child", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env(SIXTEEN_BITS, (precision == Precision::Bf16).to_string())
        .env(THREADS, threads.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
