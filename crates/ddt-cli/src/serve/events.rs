//! The progress of a job as server-sent events.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};
use serde::Serialize;
use serde_json::json;

use crate::serve::{
    job::{Phase, State, Watching},
    queue::Queue,
};

/// Shortest time between the events of two steps; steps between are left out.
const BETWEEN_STEPS: Duration = Duration::from_millis(50);

/// Time after which the place in the queue is looked up again.
const BETWEEN_PLACES: Duration = Duration::from_secs(1);

/// Time between comments that show that the connection is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// A stream of a job's events, and the last state that its client knows.
struct Told {
    queue: Arc<Queue>,
    watching: Watching,
    ahead: Option<usize>,
    last: Option<State>,
    pending: VecDeque<Event>,
}

/// `queued` with its place while the job waits; `running`; `step` and `preview`; at the end one of `done`, `failed` and
/// `cancelled`, the last event.
pub(crate) fn stream(
    queue: Arc<Queue>,
    watching: Watching,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let told = Told { queue, watching, ahead: None, last: None, pending: Default::default() };
    let events = unfold(told, |mut told| async {
        let event = told.next().await?;
        Some((Ok(event), told))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE))
}

impl Told {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let was = self.last.as_ref().map(|it| it.phase);
            if was.is_some_and(Phase::is_final) {
                return None;
            }
            match was {
                None => {}
                Some(Phase::Queued) => {
                    // A timeout looks up the place.
                    tokio::time::timeout(BETWEEN_PLACES, self.watching.state.changed()).await.ok();
                }
                Some(_) => {
                    self.watching.state.changed().await.ok()?;
                    tokio::time::sleep(BETWEEN_STEPS).await;
                }
            }
            let state = self.watching.state.borrow_and_update().clone();
            self.tell(state);
        }
    }

    /// Queues the events that lead from the last state to this one.
    fn tell(&mut self, state: State) {
        let was = self.last.as_ref();
        if state.phase == Phase::Queued {
            let ahead = self.queue.ahead(&self.watching.job);
            if self.ahead.replace(ahead) != Some(ahead) {
                self.pending.extend(event("queued", &json!({ "ahead": ahead })));
            }
        }
        let has_run = state.phase == Phase::Running || state.step.is_some() || state.phase == Phase::Done;
        if has_run && was.is_none_or(|it| it.phase == Phase::Queued) {
            self.pending.extend(event("running", &json!({})));
        }
        if let Some(step) = state.step.filter(|it| was.and_then(|it| it.step) != Some(*it)) {
            self.pending.extend(event("step", &step));
        }
        if let Some(preview) = state.preview.filter(|it| was.and_then(|it| it.preview) != Some(*it)) {
            self.pending.extend(event("preview", &preview));
        }
        let message = json!({ "message": state.message });
        match state.phase {
            Phase::Queued | Phase::Running => {}
            Phase::Done => self.pending.extend(event("done", &json!({}))),
            Phase::Failed => self.pending.extend(event("failed", &message)),
            Phase::Cancelled => self.pending.extend(event("cancelled", &message)),
        }
        self.last = Some(state);
    }
}

/// Returns `None` only for data that JSON cannot hold; ours always fits.
fn event(name: &str, data: &impl Serialize) -> Option<Event> {
    Event::default().event(name).json_data(data).ok()
}
