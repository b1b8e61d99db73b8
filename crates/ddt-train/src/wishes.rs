//! Wishes: if one rank is asked to stop, or wants to save, all ranks do.

use ddt_dist::Group;

use crate::{
    error::TrainError,
    event::{Event, OnEvent},
    ranks::agree_on,
};

/// The wishes of a rank after a step. If one rank wants something, all ranks do it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wishes {
    pub(crate) stop: bool,
    pub(crate) save: bool,
}

impl Wishes {
    /// The wishes of a rank that saves only because others do.
    pub(crate) fn stop(stop: bool) -> Self {
        Self { stop, save: false }
    }

    /// The wishes of all ranks together, if all are well. Reports the rank that stops them, unless they stop already.
    pub(crate) fn together(
        group: &dyn Group,
        own: Self,
        stop: bool,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Self, TrainError> {
        let (_, heard) =
            agree_on(group, Ok::<_, TrainError>(own), |it| vec![it.stop.into(), it.save.into()])?;
        let first = |wish: usize| heard.iter().position(|it| it.get(wish) == Some(&1));
        if let Some(rank) = first(0).filter(|_| !stop) {
            // All stop already.
            let _ = on_event(Event::Stopping(rank));
        }
        Ok(Self { stop: stop || first(0).is_some(), save: first(1).is_some() })
    }
}

/// Meets the other ranks, before they go on.
///
/// # Errors
/// [`TrainError::Stopped`] on all ranks if one was asked to stop.
pub(crate) fn go_on(group: &dyn Group, stop: bool, on_event: &mut OnEvent<'_>) -> Result<(), TrainError> {
    let wishes = Wishes::together(group, Wishes::stop(stop), false, on_event)?;
    if wishes.stop { Err(TrainError::Stopped) } else { Ok(()) }
}
