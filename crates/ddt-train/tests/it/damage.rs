//! Damage to a run's folder by kills, disks and editors: nothing intact is lost, nothing damaged is used.

use std::{fs, path::Path};

use candle_core::Device;
use ddt_files::{Checkpoint, write_safetensors};
use ddt_train::{FlowMatching, Resumed, RunFolder, TrainError, Trainer};
use serde_json::{Value, json};

use crate::runs::{copy, data, names, outcome, step, train, trainer};

const STEPS: u64 = 8;

fn resume(folder: &Path) -> (Result<Resumed, TrainError>, Trainer<FlowMatching>) {
    let mut trainer = trainer(STEPS);
    (RunFolder::open(folder).unwrap().resume(&mut trainer), trainer)
}

#[test]
fn a_kill_anywhere_in_a_save_loses_nothing() {
    let whole = tempfile::tempdir().unwrap();
    train(whole.path(), STEPS, |_| true);
    let expected = outcome(whole.path());

    let [place, partial, old] = ["step-0000000003", ".partial-step-0000000003", ".old-step-0000000003"];
    // The only checkpoint is whole under these names, and cut under those.
    let windows: [(&[&str], &[&str]); 6] = [
        (&[place], &[".partial-step-0000000006"]),
        (&[place, partial], &[]),
        (&[partial, old], &[]),
        (&[old], &[partial]),
        (&[place, old], &[]),
        (&[old], &[place]),
    ];
    for (good, cut) in windows {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), STEPS, |step| step < 4);
        let checkpoints = folder.path().join("checkpoints");
        let saved = folder.path().join("saved");
        fs::rename(checkpoints.join(place), &saved).unwrap();
        good.iter().for_each(|it| copy(&saved, &checkpoints.join(it)));
        for name in cut {
            copy(&saved, &checkpoints.join(name));
            fs::remove_file(checkpoints.join(name).join("state.json")).unwrap();
        }
        let (resumed, trainer) = resume(folder.path());
        assert_eq!((resumed.unwrap().step, trainer.steps()), (Some(3), 3), "{good:?}, {cut:?}");
        assert_eq!(names(folder.path()), [place], "{good:?}, {cut:?}");
        train(folder.path(), STEPS, |_| true);
        assert_eq!(outcome(folder.path()), expected, "{good:?}, {cut:?}");
    }
}

#[test]
fn a_first_save_that_was_cut_is_a_new_start() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 2);
    fs::create_dir(folder.path().join("checkpoints/.partial-step-0000000003")).unwrap();
    let (resumed, _) = resume(folder.path());
    assert_eq!(resumed.unwrap(), Resumed { step: None, rejected: Vec::new() });
    assert!(names(folder.path()).is_empty());
    assert_eq!(fs::read(folder.path().join("log.jsonl")).unwrap(), b"");
}

#[test]
fn the_newest_whole_checkpoint_wins_and_the_others_are_named() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 7);
    let newest = folder.path().join("checkpoints/step-0000000006");
    fs::write(newest.join("second-moments.safetensors"), b"cut").unwrap();
    let (resumed, mut resumed_trainer) = resume(folder.path());
    let resumed = resumed.unwrap();
    assert_eq!((resumed.step, resumed_trainer.steps()), (Some(3), 3));
    assert_eq!(resumed.rejected.len(), 1);
    let message = resumed.rejected[0].to_string();
    assert!(message.contains("step-0000000006") && message.contains("SHA-256"), "{message}");

    // A save before the damaged step keeps the whole one it came from.
    let mut run = RunFolder::open(folder.path()).unwrap();
    run.resume(&mut resumed_trainer).unwrap();
    step(&mut resumed_trainer, &data()).unwrap();
    run.save(&resumed_trainer).unwrap();
    assert_eq!(names(folder.path()), ["step-0000000003", "step-0000000004", "step-0000000006"]);
    drop(run);

    for step in [3, 4] {
        fs::remove_file(folder.path().join(format!("checkpoints/step-{step:010}/state.json"))).unwrap();
    }
    let message = resume(folder.path()).0.unwrap_err().to_string();
    for part in ["no checkpoint is complete", "step-0000000006", "SHA-256"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(names(folder.path()).len(), 3);
}

#[test]
fn a_shorter_log_is_an_error_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 4);
    let log = folder.path().join("log.jsonl");
    fs::write(&log, b"{}\n").unwrap();
    let (refused, trainer) = resume(folder.path());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("log.jsonl") && message.contains("got 3"), "{message}");
    assert_eq!(trainer.steps(), 0);
    assert_eq!(fs::read(&log).unwrap(), b"{}\n");
}

#[test]
fn the_log_of_a_folder_is_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log.jsonl"), b"{}\n").unwrap();
    RunFolder::open(folder.path()).unwrap().log(&json!({ "step": 1 })).unwrap();
    assert_eq!(fs::read(folder.path().join("log.jsonl")).unwrap(), b"{}\n{\"step\":1}\n");
}

#[test]
fn a_state_that_was_tampered_with_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 3);
    let path = folder.path().join("checkpoints/step-0000000003/state.json");
    let state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut changed = state.clone();
        change(&mut changed);
        fs::write(&path, changed.to_string()).unwrap();
        let (refused, trainer) = resume(folder.path());
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(trainer.steps(), 0);
    };
    check(&|it| it["sha256"] = json!({}), "expected hashes of");
    check(&|it| it["sha256"]["../../log.jsonl"] = "00".into(), "expected hashes of");
    let renamed = |it: &mut Value| {
        let hash = it["sha256"].as_object_mut().unwrap().remove("weights.safetensors").unwrap();
        it["sha256"]["../../log.jsonl"] = hash;
    };
    check(&renamed, "expected hashes of");
    check(&|it| it["counters"]["step"] = u64::MAX.into(), "no run can have");
    check(&|it| it["counters"]["step"] = (1u64 << 60).into(), "no run can have");
    check(&|it| it["counters"]["skipped"] = 4.into(), "no run can have");
    check(&|it| it["counters"]["skipped_in_a_row"] = 1.into(), "no run can have");
    check(&|it| it["data"] = Value::Null, "expected a string");
    check(&|it| it["version"] = 1.into(), "got version 1");
    check(&|it| it["more"] = 1.into(), "unknown field");
    fs::write(&path, state.to_string()).unwrap();
    assert_eq!(resume(folder.path()).0.unwrap().step, Some(3));
}

#[test]
fn tensors_of_another_network_are_refused_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), STEPS, |step| step < 3);
    let checkpoint = folder.path().join("checkpoints/step-0000000003");
    let (moments, state) = (checkpoint.join("second-moments.safetensors"), checkpoint.join("state.json"));
    let file = Checkpoint::open(&moments).unwrap();
    let tensor = |name: &str| (name.to_owned(), file.tensor(name, &Device::Cpu).unwrap());
    let fewer = file.names().into_iter().skip(1).map(tensor).collect();
    let hash = write_safetensors(&moments, &fewer, &Default::default()).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    json["sha256"]["second-moments.safetensors"] = hash.into();
    fs::write(&state, json.to_string()).unwrap();
    let (refused, resumed) = resume(folder.path());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("second-moments.safetensors"), "{message}");
    // The files before it are whole, and have not been taken either.
    let next = |mut it: Trainer<FlowMatching>| step(&mut it, &data()).unwrap();
    assert_eq!(next(resumed), next(trainer(STEPS)));
}
