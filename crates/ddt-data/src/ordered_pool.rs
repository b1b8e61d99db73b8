//! Thread pool whose results come in the order of submission.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvError, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

/// Threads that turn jobs into results. Dropping it lets each thread finish its current job, no more.
#[derive(Debug)]
pub(crate) struct OrderedPool<J, R> {
    /// Each job with the place of its result; none once the pool is dropped.
    jobs: Option<Sender<(J, Sender<R>)>>,
    /// Results of the jobs in flight, oldest first.
    results: VecDeque<Receiver<R>>,
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static, R: Send + 'static> OrderedPool<J, R> {
    /// Starts the threads.
    pub(crate) fn new(
        threads: usize,
        function: impl Fn(J) -> R + Send + Sync + 'static,
    ) -> Result<Self, io::Error> {
        let (sender, jobs) = channel::<(J, Sender<R>)>();
        let shared = Arc::new((Mutex::new(jobs), function));
        // Dropped on the way out of an error, so that threads already started end.
        let mut pool = Self {
            jobs: Some(sender),
            results: VecDeque::new(),
            stopped: Arc::default(),
            threads: Vec::new(),
        };
        for i in 0..threads {
            let (shared, stopped) = (shared.clone(), pool.stopped.clone());
            let run = move || {
                let (jobs, function) = &*shared;
                // One idle thread waits for a job, the others for the lock.
                let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((job, place)) = next() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    // A place that is dropped without a result tells of the panic.
                    if let Ok(result) = catch_unwind(AssertUnwindSafe(|| function(job))) {
                        // The pool may have been dropped meanwhile.
                        let _ = place.send(result);
                    }
                }
            };
            pool.threads.push(Builder::new().name(format!("ddt-data-{i}")).spawn(run)?);
        }
        Ok(pool)
    }

    /// Queues a job. The caller bounds the queue.
    pub(crate) fn submit(&mut self, job: J) {
        let (place, result) = channel();
        self.results.push_back(result);
        // The threads hold the other end as long as the pool exists.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send((job, place)));
    }

    /// Waits for the result of the oldest job, an error if the function panicked; none when no job is in flight.
    pub(crate) fn next(&mut self) -> Option<Result<R, RecvError>> {
        self.results.pop_front().map(|it| it.recv())
    }
}

impl<J, R> Drop for OrderedPool<J, R> {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Panics of the function were caught and reported as results.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread::sleep, time::Duration};

    use super::*;

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let mut pool = OrderedPool::new(threads, |job: u64| {
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
        let mut pool = OrderedPool::new(2, |job: u32| 60 / job).unwrap();
        [6, 0, 5].into_iter().for_each(|job| pool.submit(job));
        let results: Vec<_> = std::iter::from_fn(|| pool.next()).collect();
        assert_eq!(results, [Ok(10), Err(RecvError), Ok(12)]);
    }

    #[test]
    fn dropping_ends_the_threads_and_drops_queued_jobs() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let mut pool = OrderedPool::new(2, move |()| {
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
