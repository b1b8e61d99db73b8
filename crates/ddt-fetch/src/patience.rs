//! How long a download waits for a server.

use std::time::Duration;

/// How long to wait and how often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection and its first answer.
    pub connect: Duration,
    /// For the next bytes of a download.
    pub stall: Duration,
    /// Failures in a row, without a byte between them, after which to give up.
    pub attempts: u32,
    /// Pause after the first failure; each further one takes twice as long, up to a minute.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(15), stall: seconds(30), attempts: 6, pause: seconds(1) }
    }
}
