//! Attempts, one after another, until a file is complete.

use std::{
    fmt,
    io::{self, Read},
    ops::ControlFlow,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use ddt_files::{DiskFile, FileError, FileSystem};
use ddt_hub::{Hub, HubFile};

use crate::{
    cache::Entry,
    error::FetchError,
    http::{Announced, Client, Failure, Patience, pause},
};

/// Bytes that are read at once, and how many of these may wait to be written.
const PIECE: usize = 1 << 18;
const PIECES: usize = 8;

/// Time between two calls of a watcher when nothing happens.
const TICK: Duration = Duration::from_millis(500);

/// Callback of [`fetch`](crate::fetch()), at least once per second; it may stop the download, which a later call
/// resumes.
pub type Watch<'a> = dyn FnMut(&Progress) -> ControlFlow<()> + 'a;

/// Progress of a download, with a readable `Display`.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Bytes that are in the cache.
    pub received: u64,
    /// Bytes of the whole file, where the hub announced them.
    pub total: Option<u64>,
    /// Bytes per second since this call began.
    pub rate: f64,
    /// Time since the last byte.
    pub idle: Duration,
    /// The last failure, and how many there were in a row, while another attempt is being made.
    pub failure: Option<(String, u32)>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        write!(f, "{:.1}", megabytes(self.received))?;
        if let Some(total) = self.total {
            write!(f, " of {:.1}", megabytes(total))?;
        }
        write!(f, " MB, {:.1} MB/s", self.rate / 1e6)?;
        if let Some((reason, count)) = &self.failure {
            write!(f, ", {reason} (failure {count}), trying again")?;
        } else if self.idle >= Duration::from_secs(3) {
            write!(f, ", no data for {} s", self.idle.as_secs())?;
        }
        Ok(())
    }
}

/// Counts bytes and tells the watcher.
struct Meter<'a, 'b> {
    watch: &'a mut Watch<'b>,
    started: Instant,
    last_byte: Instant,
    /// Bytes that an earlier call left.
    before: u64,
    progress: Progress,
}

impl Meter<'_, '_> {
    fn tell(&mut self) -> Result<(), FetchError> {
        let elapsed = self.started.elapsed().as_secs_f64().max(1e-3);
        self.progress.rate = self.progress.received.saturating_sub(self.before) as f64 / elapsed;
        self.progress.idle = self.last_byte.elapsed();
        if (self.watch)(&self.progress).is_break() { Err(FetchError::Cancelled) } else { Ok(()) }
    }

    fn received(&mut self, bytes: u64) -> Result<(), FetchError> {
        self.progress.received += bytes;
        self.progress.failure = None;
        self.last_byte = Instant::now();
        self.tell()
    }

    /// Waits before another attempt.
    fn wait(&mut self, time: Duration) -> Result<(), FetchError> {
        let until = Instant::now() + time;
        loop {
            self.tell()?;
            match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(TICK)),
                _ => return Ok(()),
            }
        }
    }
}

pub(crate) fn download(
    system: &FileSystem,
    hub: &Hub,
    file: &HubFile,
    patience: &Patience,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, FetchError> {
    let client = Client::new(hub, file, patience);
    let now = Instant::now();
    let progress = Progress { received: 0, total: None, rate: 0.0, idle: Duration::ZERO, failure: None };
    let mut meter = Meter { watch, started: now, last_byte: now, before: 0, progress };
    let mut failures = 0;
    loop {
        let received = meter.progress.received;
        let failure = match attempt(system, hub, file, &client, patience, &mut meter) {
            Ok(path) => return Ok(path),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason)) => reason,
        };
        failures = if meter.progress.received > received { 1 } else { failures + 1 };
        if failures >= patience.attempts {
            let url = client.url().to_owned();
            return Err(FetchError::GaveUp { url, reason: failure, attempts: failures });
        }
        meter.progress.failure = Some((failure, failures));
        meter.wait(pause(patience, failures))?;
    }
}

/// One attempt, from where the last one ended.
fn attempt(
    system: &FileSystem,
    hub: &Hub,
    file: &HubFile,
    client: &Client,
    patience: &Patience,
    meter: &mut Meter<'_, '_>,
) -> Result<PathBuf, Failure> {
    let announced = client.announced()?;
    let entry = Entry::new(system, hub, file, &announced);
    let _lock = entry.lock()?;
    if !entry.has_blob() {
        meter.progress.total = announced.size;
        let mut written = entry.open_incomplete()?;
        let mut length = written.size()?;
        if announced.size.is_some_and(|size| length > size) {
            written.resize(0)?;
            length = 0;
        }
        if meter.progress.received == 0 {
            meter.before = length;
        }
        meter.progress.received = length;
        meter.tell()?;
        if announced.size != Some(length) || length == 0 {
            let (body, resumed) = client.bytes_from(length)?;
            if !resumed {
                written.resize(0)?;
                (meter.progress.received, meter.before) = (0, 0);
            }
            receive(body, &mut written, patience, meter)?;
        }
        written.sync()?;
        check_length(&announced, written.size()?)?;
        drop(written);
        match entry.complete(file, &announced) {
            // The bytes that an earlier process left were damaged, by a power cut for one.
            Err(error @ FetchError::Checksum { .. }) if length > 0 => {
                return Err(Failure::Passing(error.to_string()));
            }
            other => other?,
        }
    }
    Ok(entry.link(&announced)?)
}

/// Copies a body into a file; a thread reads, so that a server that sends nothing is noticed.
fn receive(
    mut body: impl Read + Send + 'static,
    file: &mut DiskFile,
    patience: &Patience,
    meter: &mut Meter<'_, '_>,
) -> Result<(), Failure> {
    let (send, pieces) = sync_channel::<io::Result<Vec<u8>>>(PIECES);
    let read = move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = body.read(&mut piece);
            let last = !matches!(read, Ok(1..));
            let sent = send.send(read.map(|length| {
                piece.truncate(length);
                piece
            }));
            if last || sent.is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("download".to_owned()).spawn(read).map_err(FetchError::Thread)?;
    copy(&pieces, file, patience, meter)
}

fn copy(
    pieces: &Receiver<io::Result<Vec<u8>>>,
    file: &mut DiskFile,
    patience: &Patience,
    meter: &mut Meter<'_, '_>,
) -> Result<(), Failure> {
    meter.last_byte = Instant::now();
    loop {
        match pieces.recv_timeout(TICK.min(patience.stall)) {
            Ok(Ok(piece)) if piece.is_empty() => return Ok(()),
            Ok(Ok(piece)) => {
                file.write_at(meter.progress.received, &piece)?;
                meter.received(piece.len() as u64)?;
            }
            Ok(Err(error)) => return Err(Failure::Passing(error.to_string())),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Passing("the connection ended".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {
                meter.tell()?;
                if meter.last_byte.elapsed() >= patience.stall {
                    return Err(Failure::Passing(format!("no data for {} s", patience.stall.as_secs())));
                }
            }
        }
    }
}

fn check_length(announced: &Announced, got: u64) -> Result<(), Failure> {
    match announced.size {
        Some(size) if got != size => {
            Err(Failure::Passing(format!("the connection ended after {got} of {size} bytes")))
        }
        _ => Ok(()),
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Final(error.into())
    }
}
