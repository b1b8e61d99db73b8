//! A group over NCCL, with a stand-in for it; threads are the ranks, and find each other as processes do.
#![cfg(feature = "nccl-stand-in")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ddt_dist::{DistError, Group, Launch, Launcher, Transport, connect, nccl_stand_in};

/// Says in a process that it has the stand-in.
const HERE: &str = "DDT_STAND_IN";

/// Whether this process has the stand-in. If it has not, runs the test of this name in one that has.
fn plays(test: &str) -> bool {
    if std::env::var_os(HERE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(HERE, "1");
    command.env("LD_LIBRARY_PATH", nccl_stand_in::folder().unwrap());
    assert!(command.status().unwrap().success(), "{test} failed");
    false
}

/// Runs a thread for each rank; `local_rank` of each.
fn ranks<T: Send>(
    devices: &[usize],
    run: impl Fn(Result<Arc<dyn Group>, DistError>, usize) -> T + Sync,
) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let launch = Launch {
        launcher: Launcher::OpenMpi,
        size: devices.len(),
        limit: Duration::from_secs(20),
        transport: Some(Transport::Nccl),
        address: Some(("localhost".to_owned(), port)),
        ..Launch::alone()
    };
    thread::scope(|scope| {
        let (run, launch) = (&run, &launch);
        let start = |(rank, local_rank): (usize, &usize)| {
            let launch = Launch { rank, local_rank: *local_rank, ..launch.clone() };
            scope.spawn(move || run(connect(&launch), rank))
        };
        let threads: Vec<_> = devices.iter().enumerate().map(start).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn pattern(rank: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + rank * 13) as u8).collect()
}

#[test]
fn bytes_of_any_number_arrive_and_other_lengths_are_an_error_on_both_sides() {
    if !plays("bytes_of_any_number_arrive_and_other_lengths_are_an_error_on_both_sides") {
        return;
    }
    // Around the first message and the pieces; none.
    let (frame, piece) = (8192 - 8, 16 << 20);
    let lens =
        [(0, 0), (1, 0), (frame, frame), (frame + 1, 3), (frame + piece, frame + piece + 1), (9, 2 * piece)];
    ranks(&[0, 1], |group, rank| {
        let group = group.unwrap();
        let mut sent = 0;
        for (low, high) in lens {
            let (sends, receives) = if rank == 0 { (low, high) } else { (high, low) };
            let mut received = vec![0; receives];
            group.exchange(1 - rank, &pattern(rank, sends), &mut received).unwrap();
            assert!(received == pattern(1 - rank, receives), "{rank}: {receives} bytes");
            sent += sends as u64;
            assert_eq!(group.bytes_sent(), sent);
        }
        // Rank 1 sends 5 bytes where 6 are expected, and expects 8 where 9 are sent.
        let mut received = vec![0; if rank == 0 { 6 } else { 8 }];
        let sends = if rank == 0 { 9 } else { 5 };
        let error = group.exchange(1 - rank, &vec![0; sends], &mut received).unwrap_err();
        let (expected, got) = if rank == 0 { (6, 5) } else { (8, 9) };
        assert_eq!(error, DistError::Length { rank: 1 - rank, expected, got });
        group.barrier().unwrap();
        assert_eq!(group.gather(&[rank as u8]).unwrap(), [0, 1]);
    });
}

#[test]
fn a_rank_that_panics_or_has_no_gpu_ends_all() {
    if !plays("a_rank_that_panics_or_has_no_gpu_ends_all") {
        return;
    }
    let begun = Instant::now();
    let outcomes = ranks(&[0, 1, 2], |group, rank| {
        let group = group.unwrap();
        if rank == 2 {
            let panicked = thread::spawn(move || {
                let _group = group;
                panic!("as a defect would");
            });
            panicked.join().unwrap_err();
            return None;
        }
        // Rank 1 waits for rank 0, which waits for rank 2.
        Some(group.barrier().unwrap_err())
    });
    assert_eq!(outcomes, [Some(DistError::Gone { rank: 2 }), Some(DistError::Gone { rank: 2 }), None]);
    // Device 8 of 8.
    let outcomes = ranks(&[0, 8], |group, _| group.map(drop).unwrap_err());
    assert_eq!(outcomes[0], DistError::Gone { rank: 1 });
    let message = outcomes[1].to_string();
    assert!(message.contains("expected a CUDA device 8, got 8 devices"), "{message}");
    assert!(message.contains("mpirun or srun"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
