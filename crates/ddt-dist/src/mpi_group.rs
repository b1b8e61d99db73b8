//! Processes under MPI.
//!
//! Every wait is bounded. A rank that has waited for too long asks all others; those that are in a call of the group
//! answer, whatever they wait for themselves, and those that do not answer are stopped, hang, or compute for too long.
//! The lowest rank that answers names them and ends all processes.

use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    thread::{sleep, yield_now},
    time::{Duration, Instant},
};

use mpi::{
    Threading,
    environment::Universe,
    point_to_point::Status,
    request::Request,
    topology::SimpleCommunicator,
    traits::{Communicator, Destination, Equivalence, Source},
};

use crate::{error::DistError, group::Group, launcher::Launcher};

/// The processes of an MPI job. Only the thread that started it may use it.
pub struct Mpi {
    // Ends MPI when it is dropped.
    _universe: Universe,
    rank: usize,
    size: usize,
    limit: Duration,
    sent: AtomicU64,
    /// Questions so far: an answer to an old one does not count.
    questions: AtomicU64,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Kinds of messages.
const DATA: i32 = 0;
const QUESTION: i32 = 1;
const ANSWER: i32 = 2;

/// MPI counts with 32 bits.
const AT_ONCE: usize = 1 << 30;

/// A rank looks this often for a message before it sleeps between looks, and once more for so many bytes: a message moves
/// while it is looked for.
const LOOKS: usize = 2000;
const BYTES_PER_LOOK: usize = 1024;
const BETWEEN_LOOKS: Duration = Duration::from_micros(50);

/// Time that a rank waits for answers.
const ANSWERS: Duration = Duration::from_secs(2);

/// Time that a rank gives a lower one to end all processes.
const PATIENCE: Duration = Duration::from_secs(10);

impl Mpi {
    /// Starts MPI, of as many processes as the launcher says; no wait for another is longer than `limit`.
    ///
    /// # Errors
    /// [`DistError::MpiInUse`] when it was started before; [`DistError::OtherSize`] when it sees another number of
    /// processes than the launcher.
    pub fn start(launcher: Launcher, expected: usize, limit: Duration) -> Result<Self, DistError> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled).ok_or(DistError::MpiInUse)?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if size != expected {
            return Err(DistError::OtherSize { launcher, expected, got: size });
        }
        let (sent, questions) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { _universe: universe, rank, size, limit, sent, questions })
    }

    /// Prints why, and ends all processes.
    fn end(&self, message: &str) -> ! {
        if !message.is_empty() {
            writeln!(std::io::stderr(), "error: {message}").ok();
        }
        SimpleCommunicator::world().abort(1)
    }
}

impl Group for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        let world = SimpleCommunicator::world();
        let peer = world.process_at_rank(partner as i32);
        self.sent.fetch_add(send.len() as u64, Ordering::Relaxed);
        let (expected, mut got) = (receive.len(), 0);
        mpi::request::scope(|scope| {
            let receives =
                receive.chunks_mut(AT_ONCE).map(|it| peer.immediate_receive_into_with_tag(scope, it, DATA));
            let mut receives: Vec<Request<'_, [u8], _>> = receives.collect();
            let sends = send.chunks(AT_ONCE).map(|it| peer.immediate_send_with_tag(scope, it, DATA));
            let mut sends: Vec<Request<'_, [u8], _>> = sends.collect();
            let mut waiting = Waiting::new(self, partner, expected.max(send.len()));
            loop {
                let mut received = |it: Status| got += it.count(u8::equivalent_datatype()) as usize;
                receives = receives.into_iter().filter_map(|it| it.test().map(&mut received).err()).collect();
                sends = sends.into_iter().filter_map(|it| it.test().err()).collect();
                if receives.is_empty() && sends.is_empty() {
                    // MPI accepts a shorter message.
                    let same = got == expected;
                    return same.then_some(()).ok_or(DistError::Length { rank: partner, expected, got });
                }
                // Never an error: what is under way cannot be taken back.
                waiting.look(&world);
            }
        })
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A wait for a message.
struct Waiting<'a> {
    group: &'a Mpi,
    partner: usize,
    /// Looks before it sleeps.
    looks: usize,
    since: Instant,
    asked: Option<Asked>,
}

/// A question to all ranks, and who has answered.
struct Asked {
    number: u64,
    since: Instant,
    answered: Vec<bool>,
}

impl<'a> Waiting<'a> {
    fn new(group: &'a Mpi, partner: usize, bytes: usize) -> Self {
        let looks = LOOKS + bytes / BYTES_PER_LOOK;
        Self { group, partner, looks, since: Instant::now(), asked: None }
    }

    /// Lets others compute, answers their questions, and asks when it takes too long.
    fn look(&mut self, world: &SimpleCommunicator) {
        if self.looks > 0 {
            self.looks -= 1;
            return yield_now();
        }
        sleep(BETWEEN_LOOKS);
        let any = world.any_process();
        while let Some(it) = any.immediate_probe_with_tag(QUESTION) {
            let mut number = [0u64];
            let asks = world.process_at_rank(it.source_rank());
            asks.receive_into_with_tag(&mut number[..], QUESTION);
            // Some bytes: they leave at once, whether or not the other looks.
            asks.send_with_tag(&number[..], ANSWER);
        }
        match &mut self.asked {
            None if self.since.elapsed() >= self.group.limit => self.ask(world),
            None => {}
            Some(asked) => {
                while let Some(it) = any.immediate_probe_with_tag(ANSWER) {
                    let mut number = [0u64];
                    world.process_at_rank(it.source_rank()).receive_into_with_tag(&mut number[..], ANSWER);
                    if number[0] == asked.number {
                        asked.answered[it.source_rank() as usize] = true;
                    }
                }
                if asked.since.elapsed() >= ANSWERS {
                    self.give_up();
                }
            }
        }
    }

    fn ask(&mut self, world: &SimpleCommunicator) {
        let (own, size) = (self.group.rank, self.group.size);
        let number = self.group.questions.fetch_add(1, Ordering::Relaxed);
        for rank in (0..size).filter(|it| *it != own) {
            world.process_at_rank(rank as i32).send_with_tag(&[number][..], QUESTION);
        }
        let answered = (0..size).map(|it| it == own).collect();
        self.asked = Some(Asked { number, since: Instant::now(), answered });
    }

    /// Ends all processes, if no lower rank will.
    fn give_up(&self) {
        let Some(asked) = &self.asked else { return };
        let lowest = asked.answered.iter().position(|it| *it);
        if lowest != Some(self.group.rank) {
            if asked.since.elapsed() >= ANSWERS + PATIENCE {
                self.group.end("");
            }
            return;
        }
        let silent: Vec<String> =
            (0..self.group.size).filter(|it| !asked.answered[*it]).map(|it| it.to_string()).collect();
        let (limit, size) = (self.group.limit.as_secs(), self.group.size);
        self.group.end(&match silent.as_slice() {
            [] => format!("rank {} of {size} has sent nothing for {limit} s, though all ranks answer", self.partner),
            it => format!(
                "rank {} of {size} has not answered for {limit} s: it was stopped, hangs or computes; the limit is \
                 DDT_RANK_TIMEOUT seconds",
                it.join(" and ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;

    #[test]
    fn a_shorter_message_is_refused() {
        // A process that no launcher started is a group of its own, and may send to itself.
        let group = Mpi::start(Launcher::None, 1, Duration::from_secs(20)).unwrap();
        let mut received = [0; 3];
        assert_eq!(group.exchange(0, &[1, 2, 3], &mut received), Ok(()));
        assert_eq!(received, [1, 2, 3]);
        let error = group.exchange(0, &[1, 2], &mut received);
        assert_eq!(error, Err(DistError::Length { rank: 0, expected: 3, got: 2 }));
    }
}
