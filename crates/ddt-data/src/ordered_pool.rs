//! Thread pool whose results come in the order of submission.
//!
//! ```text
//! submit ──► jobs ──► threads ──► slots (one per job, in order) ──► next
//! ```

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
};

/// Threads that turn jobs into results. Dropping it lets each thread finish its current job, no more.
#[derive(Debug)]
pub(crate) struct OrderedPool<J, R> {
    shared: Arc<Shared<J, R>>,
    threads: Vec<JoinHandle<()>>,
}

/// The function panicked on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

#[derive(Debug)]
struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    /// A job was submitted, or the pool is dropped.
    work: Condvar,
    /// The first slot was filled.
    done: Condvar,
}

#[derive(Debug)]
struct State<J, R> {
    /// With their ticket numbers.
    jobs: VecDeque<(u64, J)>,
    /// Results of tickets `first`, `first + 1`, ..., empty while the job is under way.
    slots: VecDeque<Option<Result<R, Panicked>>>,
    first: u64,
    stopped: bool,
}

impl<J: Send + 'static, R: Send + 'static> OrderedPool<J, R> {
    /// Starts the threads.
    pub(crate) fn new(
        threads: usize,
        function: impl Fn(J) -> R + Send + Sync + 'static,
    ) -> Result<Self, io::Error> {
        let state = State { jobs: VecDeque::new(), slots: VecDeque::new(), first: 0, stopped: false };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() });
        // Dropped on the way out of an error, so that threads already started end.
        let mut pool = Self { shared, threads: Vec::with_capacity(threads) };
        let function = Arc::new(function);
        for i in 0..threads {
            let (shared, function) = (pool.shared.clone(), function.clone());
            let run = move || shared.run(&*function);
            pool.threads.push(Builder::new().name(format!("ddt-data-{i}")).spawn(run)?);
        }
        Ok(pool)
    }

    /// Queues a job. The caller bounds the queue.
    pub(crate) fn submit(&self, job: J) {
        let mut state = self.shared.lock();
        let ticket = state.first + state.slots.len() as u64;
        state.slots.push_back(None);
        state.jobs.push_back((ticket, job));
        self.shared.work.notify_one();
    }

    /// Waits for the result of the oldest job; none when no job is in flight.
    pub(crate) fn next(&self) -> Option<Result<R, Panicked>> {
        let mut state = self.shared.lock();
        loop {
            match state.slots.front_mut()?.take() {
                Some(result) => {
                    state.slots.pop_front();
                    state.first += 1;
                    return Some(result);
                }
                None => state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl<J, R> Drop for OrderedPool<J, R> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of the function were caught and reported as results.
            let _ = thread.join();
        }
    }
}

impl<J, R> Shared<J, R> {
    /// The function runs without the lock, so a poisoned lock still guards a consistent state.
    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, function: &impl Fn(J) -> R) {
        while let Some((ticket, job)) = self.take_job() {
            let result = catch_unwind(AssertUnwindSafe(|| function(job))).map_err(|_| Panicked);
            let mut state = self.lock();
            // A ticket's slot stays until its result is taken, so tickets never fall below `first`.
            let slot = (ticket - state.first) as usize;
            if let Some(slot) = state.slots.get_mut(slot) {
                *slot = Some(result);
            }
            if slot == 0 {
                self.done.notify_one();
            }
        }
    }

    /// Waits for a job; none when the pool is dropped.
    fn take_job(&self) -> Option<(u64, J)> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread::sleep,
        time::Duration,
    };

    use super::*;

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let pool = OrderedPool::new(threads, |job: u64| {
                sleep(Duration::from_micros(job * 7919 % 400));
                job * job
            })
            .unwrap();
            (0..100).for_each(|job| pool.submit(job));
            let results: Vec<u64> = std::iter::from_fn(|| pool.next()).map(Result::unwrap).collect();
            assert_eq!(results, (0..100).map(|it| it * it).collect::<Vec<u64>>());
            assert_eq!(pool.next(), None);
        }
    }

    #[test]
    fn a_panic_is_the_result_of_its_job_only() {
        let pool = OrderedPool::new(2, |job: u32| 60 / job).unwrap();
        [6, 0, 5].into_iter().for_each(|job| pool.submit(job));
        let results: Vec<_> = std::iter::from_fn(|| pool.next()).collect();
        assert_eq!(results, [Ok(10), Err(Panicked), Ok(12)]);
    }

    #[test]
    fn dropping_ends_the_threads_and_drops_queued_jobs() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let pool = OrderedPool::new(2, move |()| {
            counter.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_millis(20));
        })
        .unwrap();
        (0..1000).for_each(|_| pool.submit(()));
        drop(pool);
        assert!(begun.load(Ordering::SeqCst) < 100);
        // All threads are gone, and the function with them.
        assert_eq!(Arc::strong_count(&begun), 1);
    }
}
