//! Bytes between the GPUs of several processes, by NVIDIA's NCCL.
//!
//! A [`Communicator`] exchanges bytes of the CPU's memory with one other rank: they are copied to the GPU, sent by NCCL,
//! and copied from the partner's GPU. No call waits without asking its caller whether to go on: NCCL is used in the way that
//! does not block, and a communicator that is given up is aborted.
//!
//! `libcuda.so.1` and `libnccl.so.2` (2.14 or newer) are looked for when the first function is called; a build needs neither
//! a toolkit nor a GPU.
#![expect(unsafe_code, reason = "calls NCCL with handles and addresses that are owned here")]

mod device;
mod error;
mod library;
#[cfg(feature = "nccl-stand-in")]
pub mod stand_in;

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use error::NcclError;
pub use library::ID_BYTES;

use self::device::Device;
use self::error::Result;
use self::library::{BYTES, Config, Handle, IN_PROGRESS, Libraries, UniqueId};

/// The most bytes that one exchange takes in each direction: the device's memory and the memory that it reaches have as many,
/// twice each.
pub const MAX_BYTES: usize = 16 << 20;

/// Time that the end of a communicator may take before it is aborted.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether to wait for another moment. It is asked at every look, and may sleep.
pub type Wait<'a> = dyn FnMut() -> bool + 'a;

/// A new communicator's id, made by one rank for all.
///
/// # Errors
/// [`NcclError`] where there is no driver, no NCCL, or it refuses.
pub fn unique_id() -> Result<[u8; ID_BYTES]> {
    let libraries = Libraries::get()?;
    let mut id = UniqueId([0; ID_BYTES]);
    // SAFETY: it writes one id.
    libraries.nccl("make an id", unsafe { (libraries.nccl.unique_id)(&raw mut id) })?;
    Ok(id.0)
}

/// A rank among others, each with a GPU of its own.
#[derive(Debug)]
pub struct Communicator {
    rank: usize,
    size: usize,
    open: Mutex<Option<Open>>,
}

/// What is there until a communicator ends.
struct Open {
    libraries: &'static Libraries,
    /// Null before NCCL has made it.
    handle: Handle,
    device: Device,
}

// SAFETY: NCCL's handle may be used from any thread, one at a time, with the device current, which each call sees to.
unsafe impl Send for Open {}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Open")
    }
}

impl Communicator {
    /// Joins the ranks that have the same id, on the GPU of this rank on its machine.
    ///
    /// # Errors
    /// [`NcclError::Ended`] when `wait` says so; other kinds where there is no driver, device or NCCL, or it refuses.
    pub fn join(
        id: [u8; ID_BYTES],
        (rank, size): (usize, usize),
        local_rank: usize,
        wait: &mut Wait<'_>,
    ) -> Result<Self> {
        let libraries = Libraries::get()?;
        let device = Device::open(libraries, local_rank, MAX_BYTES)?;
        // Owns the handle, whatever fails next.
        let mut open = Open { libraries, handle: null_mut(), device };
        let (handle, mut config) = (&raw mut open.handle, Config::without_blocking());
        let (count, number, id) = (size as c_int, rank as c_int, UniqueId(id));
        // SAFETY: the device is current, since it was opened by this thread; the configuration is that of NCCL 2.14, read
        // before the call returns; it writes one handle.
        let outcome = unsafe { (libraries.nccl.join)(handle, count, id, number, &raw mut config) };
        let joined = libraries.nccl("join the ranks", outcome);
        if let Err(error) = joined.and_then(|()| open.settle("join the ranks", wait)) {
            open.abort();
            return Err(error);
        }
        Ok(Self { rank, size, open: Mutex::new(Some(open)) })
    }

    /// Number of this rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Sends `send` to another rank, and fills `receive` with what that rank sends, which calls this at the same time, with
    /// this rank as its partner and the two lengths exchanged; neither is above [`MAX_BYTES`]. Other lengths are an error
    /// or a wait that only `wait` ends.
    ///
    /// # Errors
    /// [`NcclError::Ended`] when `wait` says so; other kinds when NCCL or the driver fails. The communicator is aborted then,
    /// and every later call fails.
    pub fn exchange(
        &self,
        partner: usize,
        send: &[u8],
        receive: &mut [u8],
        wait: &mut Wait<'_>,
    ) -> Result<()> {
        let bytes = send.len().max(receive.len());
        if bytes > MAX_BYTES || partner >= self.size || partner == self.rank {
            return Err(NcclError::Argument { most: MAX_BYTES, size: self.size, bytes, partner });
        }
        let mut place = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = place.as_mut().ok_or(NcclError::Ended)?;
        let outcome = open.exchange(partner, send, receive, wait);
        if outcome.is_err()
            && let Some(open) = place.take()
        {
            open.abort();
        }
        outcome
    }
}

impl Open {
    fn exchange(
        &mut self,
        partner: usize,
        send: &[u8],
        receive: &mut [u8],
        wait: &mut Wait<'_>,
    ) -> Result<()> {
        self.device.bind()?;
        self.device.upload(send)?;
        let nccl = &self.libraries.nccl;
        let ((from, to), stream, peer) = (self.device.places(), self.device.stream(), partner as c_int);
        // SAFETY: it has no arguments. In a group neither direction waits for the other.
        self.libraries.nccl("begin a group", unsafe { (nccl.begin_group)() })?;
        let mut outcome = Ok(());
        if !send.is_empty() {
            // SAFETY: the device has that many bytes there, on this stream, until the stream is done.
            let sent =
                unsafe { (nccl.send)(from as *const c_void, send.len(), BYTES, peer, self.handle, stream) };
            outcome = self.libraries.nccl("send", sent);
        }
        if !receive.is_empty() && outcome.is_ok() {
            // SAFETY: as above.
            let received =
                unsafe { (nccl.receive)(to as *mut c_void, receive.len(), BYTES, peer, self.handle, stream) };
            outcome = self.libraries.nccl("receive", received);
        }
        // SAFETY: as above. Ended whatever happened: a thread's open group takes in every later call.
        let ended = unsafe { (nccl.end_group)() };
        outcome.and_then(|()| self.libraries.nccl("exchange", ended))?;
        // Until then the work need not be on the stream.
        self.settle("exchange", wait)?;
        self.device.download(receive.len())?;
        while !self.device.is_done()? {
            self.state("exchange")?;
            if !wait() {
                return Err(NcclError::Ended);
            }
        }
        self.device.take(receive);
        Ok(())
    }

    /// The communicator's state; an error is one that came after the call had returned.
    fn state(&self, call: &'static str) -> Result<c_int> {
        let mut state = 0;
        // SAFETY: the handle is alive; it writes one number.
        let outcome = unsafe { (self.libraries.nccl.state)(self.handle, &raw mut state) };
        self.libraries.nccl(call, outcome)?;
        self.libraries.nccl(call, state)?;
        Ok(state)
    }

    /// Waits until the last call has done its part.
    fn settle(&self, call: &'static str, wait: &mut Wait<'_>) -> Result<()> {
        while self.state(call)? == IN_PROGRESS {
            if !wait() {
                return Err(NcclError::Ended);
            }
        }
        Ok(())
    }

    /// Gives up what is under way.
    fn abort(mut self) {
        self.close(|nccl| nccl.abort);
    }

    fn close(&mut self, how: impl Fn(&library::Nccl) -> unsafe extern "C" fn(Handle) -> c_int) {
        let handle = std::mem::replace(&mut self.handle, null_mut());
        if !handle.is_null() {
            // SAFETY: the handle is alive, and not used again. Nobody could act on an error.
            unsafe { how(&self.libraries.nccl)(handle) };
        }
    }
}

impl Drop for Open {
    /// Lets the last bytes leave, and aborts if they do not.
    fn drop(&mut self) {
        if self.handle.is_null() || self.device.bind().is_err() {
            return;
        }
        // SAFETY: the handle is alive, and its device current.
        let outcome = unsafe { (self.libraries.nccl.finalize)(self.handle) };
        let since = Instant::now();
        let mut wait = || {
            sleep(Duration::from_millis(1));
            since.elapsed() < PATIENCE
        };
        let ended = self.libraries.nccl("end", outcome).and_then(|()| self.settle("end", &mut wait));
        self.close(|nccl| if ended.is_ok() { nccl.destroy } else { nccl.abort });
    }
}
