//! Several processes over NCCL end with the same bytes as one, and together. A stand-in plays NCCL and the driver.
//!
//! Processes are started as torchrun does it, by variables; nothing ends the others when one has ended. `.ci/run` has the
//! stage.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use ddt_dist::nccl_stand_in;

use crate::small_run::{STEPS, begin, outcome, signal};

#[path = "../ranks/small_run.rs"]
mod small_run;

/// Names of the variables for rank, number of processes and rank on the machine.
type Names = [&'static str; 3];

const TORCHRUN: Names = ["RANK", "WORLD_SIZE", "LOCAL_RANK"];
const MPIRUN: Names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"];

/// Starts `ddt` as several processes.
fn start(
    names: Names,
    folder: &Path,
    processes: usize,
    variables: &[(&str, &str)],
    line: &str,
) -> Vec<Child> {
    let libraries = nccl_stand_in::folder().unwrap();
    // Free until the run begins, unless another program is quick. torchrun's own port is the one before it.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddt"));
        command.current_dir(folder).args(line.split_whitespace());
        for (name, number) in names.into_iter().zip([rank, processes, rank]) {
            command.env(name, number.to_string());
        }
        command.env("LD_LIBRARY_PATH", &libraries).env("DDT_RANK_TIMEOUT", "60");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (free - 1).to_string());
        command.envs(variables.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..processes).map(start).collect()
}

/// `ddt train` with some arguments, each process on one thread.
fn train(folder: &Path, processes: usize, arguments: &str) -> Vec<Child> {
    start(TORCHRUN, folder, processes, &[], &format!("train settings.toml --threads 1 {arguments}"))
}

/// Waits for all processes, no longer than so many seconds; returns what each printed and whether it succeeded.
fn end(mut ranks: Vec<Child>, seconds: u64) -> Vec<(bool, String, String)> {
    let begun = Instant::now();
    while ranks.iter_mut().any(|it| it.try_wait().unwrap().is_none()) {
        if begun.elapsed() > Duration::from_secs(seconds) {
            ranks.iter_mut().for_each(|it| it.kill().unwrap());
            let outputs: Vec<Output> = ranks.into_iter().map(|it| it.wait_with_output().unwrap()).collect();
            panic!("expected all processes to end within {seconds} s, got {outputs:?}");
        }
        sleep(Duration::from_millis(10));
    }
    let text = |it: Vec<u8>| String::from_utf8_lossy(&it).into_owned();
    let ended = ranks.into_iter().map(|it| it.wait_with_output().unwrap());
    ended.map(|Output { status, stdout, stderr }| (status.success(), text(stdout), text(stderr))).collect()
}

fn succeed(ranks: Vec<Child>) {
    let outputs = end(ranks, 100);
    assert!(outputs.iter().all(|it| it.0), "{outputs:?}");
    let wrote = outputs.iter().filter(|it| it.1.contains("wrote ")).count();
    assert_eq!(wrote, 1, "{outputs:?}");
}

/// Starts processes, waits until the log has a line, and sends one rank a signal.
fn disturb(folder: &Path, name: &str, rank: usize, limit: &str) -> Vec<Child> {
    let line = "train settings.toml --threads 1 --images 100_000";
    let ranks = start(TORCHRUN, folder, 4, &[("DDT_RANK_TIMEOUT", limit)], line);
    let (log, begun) = (folder.join("run/log.jsonl"), Instant::now());
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let before = lines();
    while lines() <= before {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run did not start");
        sleep(Duration::from_millis(10));
    }
    signal(name, ranks[rank].id());
    ranks
}

/// The one message of the ranks that are left, and the rank that said it.
fn message(outputs: &[(bool, String, String)]) -> (usize, String) {
    assert!(outputs.iter().all(|it| !it.0), "{outputs:?}");
    let said: Vec<(usize, String)> = outputs
        .iter()
        .enumerate()
        .filter(|it| it.1.2.contains("error: "))
        .map(|(i, it)| (i, it.2.clone()))
        .collect();
    assert_eq!(said.len(), 1, "{outputs:?}");
    said[0].clone()
}

#[test]
fn any_number_of_processes_ends_with_the_same_bytes() {
    let folders = [1, 2, 4].map(|processes| {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path());
        succeed(train(folder.path(), processes, ""));
        folder
    });
    let expected = outcome(folders[0].path());
    for (folder, processes) in folders.iter().zip([1, 2, 4]) {
        assert_eq!(outcome(folder.path()), expected, "{processes} processes");
    }
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    for (processes, images) in [(4, 16 * 6), (1, 16 * 13), (2, 16 * STEPS)] {
        succeed(train(folder.path(), processes, &format!("--images {images}")));
    }
    assert_eq!(outcome(folder.path()), expected, "4, 1 and 2 processes");
}

#[test]
fn killed_ranks_end_the_others_at_once_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    for victim in [2, 0, 3] {
        let begun = Instant::now();
        let mut ranks = disturb(folder.path(), "KILL", victim, "60");
        let killed = ranks.remove(victim);
        let outputs = end(ranks, 20);
        let (speaker, message) = message(&outputs);
        assert!(message.contains(&format!("error: rank {victim}: has ended before the others")), "{message}");
        assert_eq!(speaker, 0, "the lowest rank that is left");
        end(vec![killed], 1);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    // With the images of all runs: they were to go on for long.
    succeed(train(folder.path(), 2, "--images 2_000"));
    let undisturbed = tempfile::tempdir().unwrap();
    begin(undisturbed.path());
    succeed(train(undisturbed.path(), 1, "--images 2_000"));
    let weights = |it: &Path| fs::read(it.join("run/weights.safetensors")).unwrap();
    assert!(weights(folder.path()) == weights(undisturbed.path()), "other weights than undisturbed");
}

#[test]
fn a_stuck_rank_is_named_and_all_end() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    for victim in [2, 0] {
        let mut ranks = disturb(folder.path(), "STOP", victim, "3");
        let stuck = ranks.remove(victim);
        let (_, message) = message(&end(ranks, 40));
        assert!(message.contains(&format!("error: rank {victim}: has not answered for 3 s")), "{message}");
        signal("KILL", stuck.id());
        end(vec![stuck], 5);
    }
    succeed(train(folder.path(), 2, ""));
}

#[test]
fn a_rank_that_fails_or_is_asked_to_stop_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path());
    let outputs = end(disturb(folder.path(), "INT", 3, "60"), 40);
    assert!(outputs.iter().all(|it| !it.0 && !it.2.contains("error: ")), "{outputs:?}");
    assert!(outputs[0].2.contains("rank 3 was asked to stop"), "{outputs:?}");
    assert!(outputs[0].2.contains("saved run/checkpoints/step-"), "{outputs:?}");
    let (_, message) = message(&end(train(folder.path(), 3, ""), 40));
    assert!(message.contains("rank 0: 3 processes cannot share 8 micro-batches"), "{message}");
}

/// mpirun's processes, asked to use NCCL; and an evaluation, which gathers and broadcasts.
#[test]
fn other_launchers_use_nccl_when_they_are_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ddt = |processes, line: &str| {
        succeed(start(MPIRUN, folder, processes, &[("DDT_TRANSPORT", "nccl")], line));
    };
    ddt(1, "dataset --count 60 --batch 10 --steps 2 --threads 1 --out set.npz");
    for processes in [1, 2] {
        ddt(
            processes,
            &format!(
                "evaluate set.npz set.npz --extractor cifar10-classifier --threads 1 --cache of-{processes} --out of-{processes}.json"
            ),
        );
    }
    let report = |processes: u32| fs::read(folder.join(format!("of-{processes}.json"))).unwrap();
    assert!(report(1) == report(2));
    let nowhere = start(
        MPIRUN,
        folder,
        2,
        &[("DDT_TRANSPORT", "nccl"), ("MASTER_ADDR", "")],
        "evaluate set.npz set.npz",
    );
    for (finished, _, stderr) in end(nowhere, 20) {
        assert!(
            !finished && stderr.contains("mpirun started 2 processes and does not say where rank 0 is"),
            "{stderr}"
        );
    }
}
