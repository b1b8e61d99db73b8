//! Which jobs wait, run and are kept; every number of them is bounded.

use std::{
    any::Any,
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;

use crate::serve::{
    job::{Job, Phase, lock},
    submission::Order,
};

/// The message for jobs that wait when the server stops.
pub(crate) const RETURNED: &str = "the server is stopping; submit the job again after its restart";

/// Bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Jobs that wait, of all clients.
    pub(crate) waiting: usize,
    /// Jobs that wait, of one client.
    pub(crate) waiting_of_client: usize,
    /// Finished jobs that are kept, and the memory of their results.
    pub(crate) kept: usize,
    pub(crate) kept_bytes: usize,
    /// Longest time that a job may run.
    pub(crate) run: Duration,
    /// Time that a job goes on without a client that asks for it.
    pub(crate) abandoned: Duration,
}

/// The jobs of all clients.
pub(crate) struct Queue {
    bounds: Bounds,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    jobs: HashMap<String, Arc<Job>>,
    waiting: VecDeque<Arc<Job>>,
    running: Vec<(Arc<Job>, Instant)>,
    /// Oldest first.
    finished: VecDeque<Arc<Job>>,
    is_closed: bool,
    /// Mean time of the last jobs, in seconds.
    mean_seconds: f64,
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{what}; try again in {retry_after} s")]
    Full { what: String, retry_after: u64 },
    #[error("{RETURNED}")]
    Closed,
    #[error("no random number for the job: {0}")]
    Random(getrandom::Error),
}

/// Numbers of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) kept: usize,
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_name() -> Result<String, getrandom::Error> {
    let bits = (u128::from(getrandom::u64()?) << 64) | u128::from(getrandom::u64()?);
    Ok(format!("{bits:032x}"))
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes a job.
    pub(crate) fn submit(&self, client: String, order: Order) -> Result<Arc<Job>, Refusal> {
        let mut inner = lock(&self.inner);
        if inner.is_closed {
            return Err(Refusal::Closed);
        }
        let of_client = inner.waiting.iter().filter(|it| it.client == client).count();
        let full = |what: String, before: usize| {
            let retry_after = (inner.mean_seconds * before as f64).clamp(1.0, 60.0) as u64;
            Err(Refusal::Full { what, retry_after })
        };
        if of_client >= self.bounds.waiting_of_client {
            return full(format!("{of_client} jobs of this client are waiting already"), of_client);
        }
        if inner.waiting.len() >= self.bounds.waiting {
            return full(format!("{} jobs are waiting already", inner.waiting.len()), 1);
        }
        let job = Arc::new(Job::new(random_name().map_err(Refusal::Random)?, client, order));
        inner.jobs.insert(job.id.clone(), job.clone());
        inner.waiting.push_back(job.clone());
        self.changed.notify_all();
        Ok(job)
    }

    /// A job that waits, runs or is kept.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Job>> {
        lock(&self.inner).jobs.get(id).cloned()
    }

    /// Number of jobs that run before a waiting one.
    pub(crate) fn ahead(&self, job: &Job) -> usize {
        let inner = lock(&self.inner);
        inner.running.len() + inner.waiting.iter().take_while(|it| it.id != job.id).count()
    }

    pub(crate) fn counts(&self) -> Counts {
        let Inner { waiting, running, finished, .. } = &*lock(&self.inner);
        Counts { waiting: waiting.len(), running: running.len(), kept: finished.len() }
    }

    /// Runs jobs until the queue is closed; a panic ends its job and no other.
    pub(crate) fn work(&self, perform: &dyn Fn(&Job) -> Result<Value>) {
        while let Some(job) = self.next() {
            let outcome = catch_unwind(AssertUnwindSafe(|| perform(&job)));
            let (phase, message) = match (job.stopped(), outcome) {
                (_, Ok(Ok(result))) => {
                    job.set_result(&result);
                    (Phase::Done, None)
                }
                (Some(reason), _) => (Phase::Cancelled, Some(reason.to_owned())),
                (None, Ok(Err(error))) => (Phase::Failed, Some(format!("{error:#}"))),
                (None, Err(panic)) => (Phase::Failed, Some(format!("internal error: {}", words(&*panic)))),
            };
            self.finish(&job, phase, message);
        }
    }

    /// Waits for the first job of a client that has none running; jobs that are followed go first. `None` once closed.
    fn next(&self) -> Option<Arc<Job>> {
        let mut inner = lock(&self.inner);
        while !inner.is_closed {
            let is_free =
                |it: &Arc<Job>| inner.running.iter().all(|(running, _)| running.client != it.client);
            let followed = inner.waiting.iter().position(|it| it.is_followed() && is_free(it));
            let at = followed.or_else(|| inner.waiting.iter().position(is_free));
            if let Some(job) = at.and_then(|at| inner.waiting.remove(at)) {
                inner.running.push((job.clone(), Instant::now()));
                job.set_phase(Phase::Running, None);
                return Some(job);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn finish(&self, job: &Arc<Job>, phase: Phase, message: Option<String>) {
        let mut inner = lock(&self.inner);
        if let Some(at) = inner.running.iter().position(|(it, _)| it.id == job.id) {
            let seconds = inner.running.swap_remove(at).1.elapsed().as_secs_f64();
            inner.mean_seconds += (seconds - inner.mean_seconds) / 4.0;
        }
        inner.keep(job.clone(), &self.bounds);
        job.set_phase(phase, message);
        self.changed.notify_all();
    }

    /// Cancels a job: at once if it waits, after its next step if it runs.
    pub(crate) fn cancel(&self, job: &Arc<Job>, reason: &str) {
        let mut inner = lock(&self.inner);
        job.stop(reason);
        if let Some(at) = inner.waiting.iter().position(|it| it.id == job.id) {
            inner.waiting.remove(at);
            inner.keep(job.clone(), &self.bounds);
            job.set_phase(Phase::Cancelled, Some(reason.to_owned()));
        }
    }

    /// Cancels jobs that nobody asks for, and those that run for too long.
    pub(crate) fn tend(&self) {
        let (waiting, running) = {
            let inner = lock(&self.inner);
            (inner.waiting.clone(), inner.running.clone())
        };
        for (job, since) in &running {
            if since.elapsed() > self.bounds.run {
                self.cancel(job, &format!("the job ran for more than {} s", self.bounds.run.as_secs_f64()));
            }
        }
        for job in waiting.iter().chain(running.iter().map(|(job, _)| job)) {
            if job.is_abandoned(self.bounds.abandoned) {
                self.cancel(job, "the client went away");
            }
        }
    }

    /// Takes no more jobs and returns those that wait.
    pub(crate) fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        for job in std::mem::take(&mut inner.waiting) {
            inner.keep(job.clone(), &self.bounds);
            job.set_phase(Phase::Cancelled, Some(RETURNED.to_owned()));
        }
        self.changed.notify_all();
    }

    /// Cancels what runs.
    pub(crate) fn stop(&self) {
        let running = lock(&self.inner).running.clone();
        running.iter().for_each(|(job, _)| self.cancel(job, RETURNED));
    }
}

impl Inner {
    /// Keeps a finished job, and forgets the oldest ones beyond the bounds.
    fn keep(&mut self, job: Arc<Job>, bounds: &Bounds) {
        self.finished.push_back(job);
        let mut bytes: usize = self.finished.iter().map(|it| it.bytes()).sum();
        while self.finished.len() > bounds.kept || (bytes > bounds.kept_bytes && self.finished.len() > 1) {
            let Some(oldest) = self.finished.pop_front() else { return };
            bytes -= oldest.bytes();
            self.jobs.remove(&oldest.id);
        }
    }
}

/// The message of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use ddt::Request;

    use super::*;

    #[test]
    fn closing_returns_every_job_that_has_not_begun() {
        let long = Duration::from_secs(60);
        let bounds = Bounds {
            waiting: 8,
            waiting_of_client: 1,
            kept: 8,
            kept_bytes: 1 << 20,
            run: long,
            abandoned: long,
        };
        for _ in 0..200 {
            let queue = Queue::new(bounds);
            let submit = |client: usize| {
                let order = Order::Generate { request: Request::new([0], 1), pipelines: Vec::new() };
                queue.submit(client.to_string(), order)
            };
            let jobs: Vec<_> = (0..8).map(|client| submit(client).unwrap()).collect();
            let begun = AtomicUsize::new(0);
            let perform = |job: &Job| {
                begun.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(100));
                anyhow::ensure!(job.flow().is_continue(), "stopped");
                Ok(Value::Null)
            };
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| queue.work(&perform));
                }
                thread::sleep(Duration::from_micros(100));
                queue.close();
            });
            let states: Vec<_> = jobs.iter().map(|it| it.state()).collect();
            let done = states.iter().filter(|it| it.phase == Phase::Done).count();
            assert_eq!(done, begun.into_inner());
            for state in states.iter().filter(|it| it.phase != Phase::Done) {
                assert_eq!((state.phase, state.message.as_deref()), (Phase::Cancelled, Some(RETURNED)));
            }
            assert_eq!(queue.counts(), Counts { waiting: 0, running: 0, kept: 8 });
            assert!(matches!(submit(9), Err(Refusal::Closed)));
        }
    }
}
