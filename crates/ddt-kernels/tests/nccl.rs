//! Exchanges by NCCL, with a stand-in for it and for the driver; threads are the ranks.
#![cfg(feature = "nccl-stand-in")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ddt_kernels::nccl::{Communicator, MAX_BYTES, NcclError, stand_in, unique_id};

/// Says in a process that it has the stand-in.
const HERE: &str = "DDT_STAND_IN";

/// Whether this process has the libraries of a folder. If it has not, runs the test of this name in one that has.
fn plays(test: &str, folder: &Path, variable: (&str, &str)) -> bool {
    if std::env::var_os(HERE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(HERE, "1").env("LD_LIBRARY_PATH", folder);
    assert!(command.env(variable.0, variable.1).status().unwrap().success(), "{test} failed");
    false
}

/// Waits for ten seconds at most.
fn patient() -> impl FnMut() -> bool {
    impatient(10_000)
}

fn impatient(milliseconds: u64) -> impl FnMut() -> bool {
    let since = Instant::now();
    move || {
        thread::sleep(Duration::from_micros(50));
        since.elapsed() < Duration::from_millis(milliseconds)
    }
}

/// Runs a thread for each rank, on the devices given.
fn ranks<T: Send>(devices: &[usize], run: impl Fn(Result<Communicator, NcclError>) -> T + Sync) -> Vec<T> {
    let (id, size) = (unique_id().unwrap(), devices.len());
    thread::scope(|scope| {
        let run = &run;
        let start = |(rank, device): (usize, &usize)| {
            let device = *device;
            scope.spawn(move || run(Communicator::join(id, (rank, size), device, &mut patient())))
        };
        let threads: Vec<_> = devices.iter().enumerate().map(start).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn pattern(rank: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + rank * 13) as u8).collect()
}

#[test]
fn each_rank_gets_what_its_partner_sends() {
    let test = "each_rank_gets_what_its_partner_sends";
    if !plays(test, &stand_in::folder().unwrap(), ("DDT_STAND_IN_DEVICES", "8")) {
        return;
    }
    // Of other lengths in each direction, of none in one, and of the most.
    let lens = [(1, 1), (300, 70_001), (0, 5), (70_001, 0), (MAX_BYTES, MAX_BYTES)];
    ranks(&[0, 1, 2, 3], |joined| {
        let communicator = joined.unwrap();
        let rank = communicator.rank();
        for other in [1, 2, 3] {
            let partner = rank ^ other;
            for (low, high) in lens {
                let (sends, receives) = if rank < partner { (low, high) } else { (high, low) };
                let mut received = vec![0; receives];
                communicator.exchange(partner, &pattern(rank, sends), &mut received, &mut patient()).unwrap();
                assert!(received == pattern(partner, receives), "{rank} and {partner}: {receives} bytes");
            }
        }
        let refused = communicator.exchange(rank, &[1], &mut [], &mut patient());
        assert!(matches!(refused, Err(NcclError::Argument { .. })), "{refused:?}");
        let refused = communicator.exchange(rank ^ 1, &vec![0; MAX_BYTES + 1], &mut [], &mut patient());
        assert!(matches!(refused, Err(NcclError::Argument { .. })), "{refused:?}");
    });
}

#[test]
fn a_wait_ends_when_the_caller_says_so_and_the_communicator_with_it() {
    let test = "a_wait_ends_when_the_caller_says_so_and_the_communicator_with_it";
    if !plays(test, &stand_in::folder().unwrap(), ("DDT_STAND_IN_DEVICES", "8")) {
        return;
    }
    let begun = Instant::now();
    let given_up = Barrier::new(2);
    ranks(&[0, 1], |joined| {
        let communicator = joined.unwrap();
        if communicator.rank() == 0 {
            let mut received = [7; 3];
            let waited = communicator.exchange(1, &[1], &mut received, &mut impatient(100));
            assert_eq!((waited, received), (Err(NcclError::Ended), [7; 3]));
            let again = communicator.exchange(1, &[1], &mut received, &mut patient());
            assert_eq!(again, Err(NcclError::Ended));
        }
        given_up.wait();
    });
    // A rank that never comes.
    let alone = Communicator::join(unique_id().unwrap(), (0, 2), 0, &mut impatient(100));
    assert_eq!(alone.map(drop), Err(NcclError::Ended));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn what_nccl_refuses_is_an_error_with_its_words() {
    let test = "what_nccl_refuses_is_an_error_with_its_words";
    if !plays(test, &stand_in::folder().unwrap(), ("DDT_STAND_IN_DEVICES", "2")) {
        return;
    }
    let says = |words: &str, outcome: Result<(), NcclError>| {
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    for refused in ranks(&[1, 1], |joined| joined.map(drop)) {
        says("join the ranks: libnccl.so.2 says invalid usage", refused);
    }
    ranks(&[0, 1], |joined| {
        let communicator = joined.unwrap();
        let partner = 1 - communicator.rank();
        // Both send one byte; one expects two.
        let mut received = vec![0; 1 + communicator.rank()];
        let outcome = communicator.exchange(partner, &[1], &mut received, &mut impatient(1000));
        match communicator.rank() {
            0 => assert!(matches!(outcome, Ok(()) | Err(NcclError::Ended)), "{outcome:?}"),
            _ => says("exchange: libnccl.so.2 says invalid usage", outcome),
        }
    });
    let id = unique_id().unwrap();
    let beyond = Communicator::join(id, (0, 1), 2, &mut patient()).map(drop);
    assert_eq!(beyond, Err(NcclError::NoDevice { ordinal: 2, count: 2 }));
}

/// As SLURM starts processes, each with a GPU of its own that it knows as the first.
#[test]
fn the_only_device_is_that_of_any_rank() {
    let test = "the_only_device_is_that_of_any_rank";
    if !plays(test, &stand_in::folder().unwrap(), ("DDT_STAND_IN_DEVICES", "1")) {
        return;
    }
    let alone = Communicator::join(unique_id().unwrap(), (0, 1), 3, &mut patient());
    assert_eq!(alone.unwrap().rank(), 0);
}

#[test]
fn an_old_nccl_is_named() {
    let folder = stand_in::folder().unwrap();
    if !plays("an_old_nccl_is_named", &folder, ("DDT_STAND_IN_NCCL", "21304")) {
        return;
    }
    assert_eq!(unique_id(), Err(NcclError::OldNccl { version: "2.13.4".to_owned() }));
}

#[test]
fn a_missing_nccl_is_named() {
    let folder = stand_in::folder_without_nccl().unwrap();
    if !plays("a_missing_nccl_is_named", &folder, ("DDT_STAND_IN_DEVICES", "8")) {
        return;
    }
    assert_eq!(unique_id(), Err(NcclError::NoNccl));
}
