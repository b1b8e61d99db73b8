//! One thread at a time on a stream.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// A lock that the thread which holds it may take again.
///
/// While one thread records a stream, work of another thread would become part of the recording, and its wait would end it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The thread, and how many times it holds the lock.
    holder: Mutex<Option<(ThreadId, usize)>>,
    freed: Condvar,
}

/// The lock, until it is dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Turn);

impl Turn {
    pub(super) fn take(&self) -> Held<'_> {
        let own = thread::current().id();
        let others = |it: &mut Option<(ThreadId, usize)>| it.is_some_and(|(holder, _)| holder != own);
        let mut holder = self.freed.wait_while(self.holder(), others).unwrap_or_else(PoisonError::into_inner);
        *holder = Some((own, holder.map_or(1, |(_, times)| times + 1)));
        Held(self)
    }

    fn holder(&self) -> MutexGuard<'_, Option<(ThreadId, usize)>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut holder = self.0.holder();
        *holder = holder.filter(|(_, times)| *times > 1).map(|(thread, times)| (thread, times - 1));
        if holder.is_none() {
            self.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_until_the_last_hold_is_dropped() {
        let turn = Turn::default();
        let log = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let outer = turn.take();
            let other = scope.spawn(|| {
                let _held = turn.take();
                log.lock().unwrap_or_else(PoisonError::into_inner).push("other");
            });
            drop(turn.take());
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(!other.is_finished());
            log.lock().unwrap_or_else(PoisonError::into_inner).push("own");
            drop(outer);
        });
        assert_eq!(log.into_inner().unwrap_or_else(PoisonError::into_inner), ["own", "other"]);
    }
}
