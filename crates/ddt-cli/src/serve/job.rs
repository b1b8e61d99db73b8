//! One job: its order, its progress, its results.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::serve::submission::Order;

/// Locks, whatever happened to the thread that held the lock before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job of a client.
pub(crate) struct Job {
    /// 128 random bits.
    pub(crate) id: String,
    pub(crate) client: String,
    pub(crate) order: Order,
    state: watch::Sender<State>,
    /// The reason to stop, once somebody asked.
    stop: OnceLock<String>,
    results: Mutex<Results>,
    attention: Mutex<Attention>,
}

/// Progress of a job.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// Why it failed or was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preview: Option<Preview>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl Phase {
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// The last step that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Number of the run, one for each of the settings, from 0.
    pub(crate) run: usize,
    pub(crate) runs: usize,
    /// Images that earlier batches of this run finished, of how many.
    pub(crate) finished: usize,
    pub(crate) images: usize,
    /// Steps of the present batch that are done, of how many.
    pub(crate) step: usize,
    pub(crate) num_steps: usize,
    /// Share of the run that is done, in [0, 1].
    pub(crate) share: f64,
    /// Time since the run began.
    pub(crate) seconds: f64,
}

/// A preview that `sheet.png` of its run now has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Preview {
    pub(crate) run: usize,
    /// Rises with every preview of the job.
    pub(crate) number: usize,
}

/// The files of a job; more come while it runs.
#[derive(Default)]
struct Results {
    /// JSON; empty until the job is done.
    result: Bytes,
    pictures: Vec<Pictures>,
}

/// PNG files of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pictures {
    /// The images or their latest preview, a row for each class, without labels.
    pub(crate) sheet: Bytes,
    /// The labelled page with its record; empty until the run is done.
    pub(crate) page: Bytes,
}

/// Interest of clients in the job.
struct Attention {
    streams: usize,
    /// Time of the last request, or of the end of the last stream.
    seen: Instant,
}

impl Job {
    pub(crate) fn new(id: String, client: String, order: Order) -> Self {
        let state = State { phase: Phase::Queued, message: None, step: None, preview: None };
        Self {
            id,
            client,
            order,
            state: watch::Sender::new(state),
            stop: OnceLock::new(),
            results: Mutex::default(),
            attention: Mutex::new(Attention { streams: 0, seen: Instant::now() }),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn set_phase(&self, phase: Phase, message: Option<String>) {
        self.state.send_modify(|it| (it.phase, it.message) = (phase, message));
    }

    pub(crate) fn set_step(&self, step: Step) {
        self.state.send_modify(|it| it.step = Some(step));
    }

    /// Asks the job to stop after its next step; the first reason stays.
    pub(crate) fn stop(&self, reason: &str) {
        self.stop.set(reason.to_owned()).ok();
    }

    /// The reason to stop, once somebody asked.
    pub(crate) fn stopped(&self) -> Option<&str> {
        self.stop.get().map(String::as_str)
    }

    /// `Break` once the job is to stop; solvers ask after every step.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.stop.get().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Publishes the sheet of a run, and its labelled page if it is done.
    pub(crate) fn set_pictures(&self, run: usize, sheet: Vec<u8>, page: Vec<u8>) {
        {
            let mut results = lock(&self.results);
            let missing = (run + 1).saturating_sub(results.pictures.len());
            results.pictures.extend(std::iter::repeat_n(Pictures::default(), missing));
            if let Some(it) = results.pictures.get_mut(run) {
                *it = Pictures { sheet: sheet.into(), page: page.into() };
            }
        }
        self.state.send_modify(|it| {
            let number = it.preview.map_or(0, |it| it.number + 1);
            it.preview = Some(Preview { run, number });
        });
    }

    pub(crate) fn pictures(&self, run: usize) -> Option<Pictures> {
        lock(&self.results).pictures.get(run).cloned()
    }

    pub(crate) fn set_result(&self, result: &Value) {
        lock(&self.results).result = result.to_string().into();
    }

    pub(crate) fn result(&self) -> Bytes {
        lock(&self.results).result.clone()
    }

    /// Memory of the results.
    pub(crate) fn bytes(&self) -> usize {
        let Results { result, pictures } = &*lock(&self.results);
        result.len() + pictures.iter().map(|it| it.sheet.len() + it.page.len()).sum::<usize>()
    }

    /// Notes that a request asked for the job.
    pub(crate) fn seen(&self) {
        lock(&self.attention).seen = Instant::now();
    }

    /// Whether a stream of its events is open.
    pub(crate) fn is_followed(&self) -> bool {
        lock(&self.attention).streams > 0
    }

    /// Whether no stream is open and no request came for this long.
    pub(crate) fn is_abandoned(&self, patience: Duration) -> bool {
        let it = lock(&self.attention);
        it.streams == 0 && it.seen.elapsed() >= patience
    }

    /// A view of the state, which counts as attention while it lives.
    pub(crate) fn watch(self: &Arc<Self>) -> Watching {
        lock(&self.attention).streams += 1;
        Watching { state: self.state.subscribe(), job: self.clone() }
    }
}

/// A client that follows a job.
pub(crate) struct Watching {
    pub(crate) job: Arc<Job>,
    pub(crate) state: watch::Receiver<State>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut attention = lock(&self.job.attention);
        attention.streams -= 1;
        attention.seen = Instant::now();
    }
}
