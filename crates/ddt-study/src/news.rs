//! News of a study: messages, progress, and whether to go on.

use std::ops::ControlFlow;

use anyhow::Result;
use ddt_train::{Event, Settings};

/// News of a study.
#[non_exhaustive]
pub enum News<'a> {
    /// A line to show.
    Message(String),
    /// So much of some work is done.
    Progress {
        /// The work, such as "generating images".
        work: &'static str,
        /// Things done.
        done: u64,
        /// Things in all.
        total: u64,
    },
    /// An event of a training run with these settings.
    Training(&'a Settings, &'a Event<'a>),
}

/// Called with every [`News`]; after a break the study ends with [`ddt::Error::Cancelled`], and results that were
/// written stay.
pub type OnNews<'a> = dyn FnMut(News<'_>) -> ControlFlow<()> + 'a;

/// Passes news on; an error if the study is to stop.
pub(crate) fn tell(on_news: &mut OnNews<'_>, news: News<'_>) -> Result<()> {
    match on_news(news) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ddt::Error::Cancelled.into()),
    }
}
