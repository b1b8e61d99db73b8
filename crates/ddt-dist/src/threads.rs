//! A group of threads in one process: what tests use in the place of processes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{error::DistError, group::Group};

/// A rank that is a thread.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    size: usize,
    post: Arc<Post>,
    sent: AtomicU64,
    limit: Duration,
}

/// Messages under way.
#[derive(Debug, Default)]
struct Post {
    /// By sender and receiver, oldest first.
    boxes: Mutex<Boxes>,
    changed: Condvar,
}

type Boxes = HashMap<(usize, usize), VecDeque<Vec<u8>>>;

/// Time that a rank waits for another.
const LIMIT: Duration = Duration::from_secs(60);

/// The ranks of a group, one for each thread.
pub fn thread_group(size: usize) -> Vec<ThreadRank> {
    let post = Arc::<Post>::default();
    let rank = |rank| ThreadRank { rank, size, post: post.clone(), sent: AtomicU64::new(0), limit: LIMIT };
    (0..size).map(rank).collect()
}

impl ThreadRank {
    /// Waits for others no longer than this, instead of a minute.
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

impl Group for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        let mut boxes = self.post.boxes.lock().unwrap_or_else(PoisonError::into_inner);
        if !send.is_empty() {
            boxes.entry((self.rank, partner)).or_default().push_back(send.to_vec());
            self.sent.fetch_add(send.len() as u64, Ordering::Relaxed);
            self.post.changed.notify_all();
        }
        if receive.is_empty() {
            return Ok(());
        }
        let from = (partner, self.rank);
        let waits = |it: &mut Boxes| it.get(&from).is_none_or(VecDeque::is_empty);
        let (mut boxes, _) = self
            .post
            .changed
            .wait_timeout_while(boxes, self.limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        let silent = DistError::Silent { rank: partner, seconds: self.limit.as_secs() };
        let message = boxes.get_mut(&from).and_then(VecDeque::pop_front).ok_or(silent)?;
        if message.len() != receive.len() {
            return Err(DistError::Length { rank: partner, expected: receive.len(), got: message.len() });
        }
        receive.copy_from_slice(&message);
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should stop")]
    use super::*;

    #[test]
    fn silence_and_other_lengths_are_named() {
        let mut group = thread_group(2).into_iter().map(|it| it.with_limit(Duration::from_millis(20)));
        let (zero, one) = (group.next().unwrap(), group.next().unwrap());
        assert_eq!(zero.exchange(1, &[], &mut [0]), Err(DistError::Silent { rank: 1, seconds: 0 }));
        one.exchange(0, &[1, 2], &mut []).unwrap();
        let error = zero.exchange(1, &[], &mut [0]);
        assert_eq!(error, Err(DistError::Length { rank: 1, expected: 1, got: 2 }));
    }
}
