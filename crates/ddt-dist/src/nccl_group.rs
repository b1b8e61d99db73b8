//! Processes with a GPU each, connected by NVIDIA's NCCL.
//!
//! An exchange begins with a frame of one size from each side: a length, and the first bytes. So lengths that differ are an
//! error before NCCL would wait for ever, and small exchanges are one message. The rest follows in pieces.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ddt_kernels::nccl::{Communicator, MAX_BYTES, NcclError, unique_id};

use crate::{
    error::DistError,
    group::Group,
    launch::Launch,
    liveness::{Liveness, Waiting},
    meeting::{come, listen, receive},
};

/// Bytes of the first message.
const FRAME: usize = 8192;
/// Bytes before the data: the length.
const HEAD: usize = 8;

/// The ranks of a launch, on the GPUs of their machines.
pub struct Nccl {
    rank: usize,
    size: usize,
    sent: AtomicU64,
    links: Mutex<Links>,
}

struct Links {
    /// There until this is dropped.
    communicator: Option<Communicator>,
    liveness: Liveness,
    /// The error after which nothing more is exchanged.
    ended: Option<DistError>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Nccl {
    /// Finds the others, and joins them on the GPU of this rank on its machine.
    ///
    /// # Errors
    /// [`DistError::NoAddress`] where nothing says where rank 0 is; the errors of meeting it; [`DistError::NoNccl`] and
    /// [`DistError::Nccl`].
    pub fn start(launch: &Launch) -> Result<Self, DistError> {
        let Launch { launcher, rank, size, local_rank, limit, .. } = *launch;
        let (host, port) = launch.address.as_ref().ok_or(DistError::NoAddress { launcher, size })?;
        let (id, streams) = if rank == 0 {
            receive(&listen(host, *port)?, size, limit, || Ok(unique_id()?))?
        } else {
            let (id, stream) = come((host, *port), (rank, size), limit)?;
            (id, vec![stream])
        };
        let lost = |it: std::io::Error| DistError::Listen { port: *port, why: it.to_string() };
        let mut liveness = Liveness::new(rank, streams, limit).map_err(lost)?;
        // Nobody knows yet whom it waits for: rank 0 takes rank 1 for it, and they rank 0.
        let mut watch = Watch::new(&mut liveness, usize::from(rank == 0));
        let joined = Communicator::join(id, (rank, size), local_rank, &mut || watch.look());
        let communicator = joined.map_err(|it| watch.error(it))?;
        let links = Mutex::new(Links { communicator: Some(communicator), liveness, ended: None });
        Ok(Self { rank, size, sent: AtomicU64::new(0), links })
    }
}

/// A wait, and the news that ended it.
struct Watch<'a> {
    liveness: &'a mut Liveness,
    waiting: Waiting,
    news: Option<DistError>,
}

impl<'a> Watch<'a> {
    fn new(liveness: &'a mut Liveness, partner: usize) -> Self {
        Self { liveness, waiting: Waiting::new(partner), news: None }
    }

    fn look(&mut self) -> bool {
        self.news = self.liveness.look(&mut self.waiting).err();
        self.news.is_none()
    }

    /// What NCCL's error means: it was the news that ended the wait, or its own.
    fn error(&mut self, error: NcclError) -> DistError {
        self.news.take().unwrap_or_else(|| error.into())
    }
}

impl Links {
    fn swap(&mut self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        let mut watch = Watch::new(&mut self.liveness, partner);
        let communicator = self.communicator.as_ref().ok_or(NcclError::Ended)?;
        let outcome = communicator.exchange(partner, send, receive, &mut || watch.look());
        outcome.map_err(|it| watch.error(it))
    }

    fn exchange(&mut self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        let mut frames = [vec![0; FRAME], vec![0; FRAME]];
        let [ours, theirs] = &mut frames;
        let (sent, expected) = (send.len().min(FRAME - HEAD), receive.len());
        ours[..HEAD].copy_from_slice(&(send.len() as u64).to_le_bytes());
        ours[HEAD..HEAD + sent].copy_from_slice(&send[..sent]);
        self.swap(partner, ours, theirs)?;
        let got = theirs[..HEAD].try_into().map_or(0, u64::from_le_bytes) as usize;
        if got != expected {
            return Err(DistError::Length { rank: partner, expected, got });
        }
        let received = expected.min(FRAME - HEAD);
        receive[..received].copy_from_slice(&theirs[HEAD..HEAD + received]);
        // The partner's receives are our sends, so both make the same number of steps.
        let (mut sends, mut receives) =
            (send[sent..].chunks(MAX_BYTES), receive[received..].chunks_mut(MAX_BYTES));
        loop {
            let (send, receive) = (sends.next(), receives.next());
            if send.is_none() && receive.is_none() {
                return Ok(());
            }
            self.swap(partner, send.unwrap_or_default(), receive.unwrap_or_default())?;
        }
    }
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, partner: usize, send: &[u8], receive: &mut [u8]) -> Result<(), DistError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &links.ended {
            return Err(error.clone());
        }
        self.sent.fetch_add(send.len() as u64, Ordering::Relaxed);
        let outcome = links.exchange(partner, send, receive);
        // Of lengths that differ both sides know, and nothing is under way.
        links.ended = outcome.clone().err().filter(|it| !matches!(it, DistError::Length { .. }));
        outcome
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // The last bytes leave first.
        self.communicator = None;
        // Of a rank that fails the others are to hear.
        if self.ended.is_none() && !std::thread::panicking() {
            self.liveness.leave();
        }
    }
}
