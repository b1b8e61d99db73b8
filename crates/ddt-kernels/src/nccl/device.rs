//! A GPU's stream, and memory on both sides of it through which bytes go.
#![expect(unsafe_code, reason = "owns a stream, and memory that copies on it read and write")]

use std::ffi::c_int;
use std::ptr::null_mut;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::error::{NcclError, Result};
use super::library::{Handle, Libraries, NOT_READY};

/// Time that work gets to leave the stream before its memory is given up instead of freed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way for bytes: of one direction, on the device and in memory that the device reaches.
struct Way {
    device: u64,
    host: Handle,
}

/// A device with one stream and a way in each direction.
pub(super) struct Device {
    libraries: &'static Libraries,
    ordinal: c_int,
    context: Handle,
    stream: Handle,
    out: Way,
    back: Way,
    bytes: usize,
}

// SAFETY: the driver's handles may be used from any thread; every call here makes the context current on its thread first.
unsafe impl Send for Device {}

impl Device {
    /// The device of a rank on this machine; where a process sees only one, that one.
    pub(super) fn open(libraries: &'static Libraries, local_rank: usize, bytes: usize) -> Result<Self> {
        let driver = &libraries.driver;
        let mut count = 0;
        // SAFETY: it writes one number.
        libraries.driver("count devices", unsafe { (driver.device_count)(&raw mut count) })?;
        let count = usize::try_from(count).unwrap_or(0);
        let wanted = if count == 1 { 0 } else { local_rank };
        if wanted >= count {
            return Err(NcclError::NoDevice { ordinal: wanted, count });
        }
        let (mut ordinal, mut context) = (0, null_mut());
        // SAFETY: the number is below the count, and it writes one number.
        libraries.driver("find the device", unsafe { (driver.device)(&raw mut ordinal, wanted as c_int) })?;
        // SAFETY: a device that the driver named; it writes one handle.
        let outcome = unsafe { (driver.retain_context)(&raw mut context, ordinal) };
        libraries.driver("open the device", outcome)?;
        let way = || Way { device: 0, host: null_mut() };
        // Owns what is made from here on, whatever fails next.
        let mut it = Self { libraries, ordinal, context, stream: null_mut(), out: way(), back: way(), bytes };
        it.bind()?;
        // Not ordered with the default stream.
        const NON_BLOCKING: u32 = 1;
        // SAFETY: the context is current; it writes one handle.
        let outcome = unsafe { (driver.create_stream)(&raw mut it.stream, NON_BLOCKING) };
        libraries.driver("make a stream", outcome)?;
        for way in [&mut it.out, &mut it.back] {
            // SAFETY: as above; it writes one address.
            let outcome = unsafe { (driver.allocate)(&raw mut way.device, bytes) };
            libraries.driver("allocate memory of the device", outcome)?;
            // SAFETY: as above.
            let outcome = unsafe { (driver.allocate_host)(&raw mut way.host, bytes) };
            libraries.driver("allocate memory that the device reaches", outcome)?;
        }
        Ok(it)
    }

    /// Makes this thread's calls those of this device; NCCL looks for that too.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained until this is dropped.
        self.libraries.driver("use the device", unsafe { (self.libraries.driver.use_context)(self.context) })
    }

    pub(super) fn stream(&self) -> Handle {
        self.stream
    }

    /// Where bytes that leave are on the device, and where those that come are to be.
    pub(super) fn places(&self) -> (u64, u64) {
        (self.out.device, self.back.device)
    }

    /// Puts a copy of bytes to the device on the stream; the stream is empty.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes, "the caller has compared them");
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the memory has that many bytes, is this value's alone, and no work on the empty stream uses it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.out.host.cast(), bytes.len()) };
        // SAFETY: both sides have that many bytes, and live until the stream is empty or the program ends.
        let outcome = unsafe {
            (self.libraries.driver.to_device)(self.out.device, self.out.host, bytes.len(), self.stream)
        };
        self.libraries.driver("copy to the device", outcome)
    }

    /// Puts a copy of bytes that came to the device on the stream.
    pub(super) fn download(&mut self, len: usize) -> Result<()> {
        assert!(len <= self.bytes, "the caller has compared them");
        if len == 0 {
            return Ok(());
        }
        // SAFETY: as for `upload`.
        let outcome =
            unsafe { (self.libraries.driver.to_host)(self.back.host, self.back.device, len, self.stream) };
        self.libraries.driver("copy from the device", outcome)
    }

    /// Whether all work on the stream is done.
    pub(super) fn is_done(&self) -> Result<bool> {
        // SAFETY: the stream is this value's.
        match unsafe { (self.libraries.driver.query_stream)(self.stream) } {
            NOT_READY => Ok(false),
            outcome => self.libraries.driver("look at the stream", outcome).map(|()| true),
        }
    }

    /// Copies what [`download`](Self::download) brought; the stream is done.
    pub(super) fn take(&mut self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.bytes, "the caller has compared them");
        // SAFETY: the memory has that many bytes, was filled by the driver or is as the driver gave it, and no work uses it.
        unsafe { std::ptr::copy_nonoverlapping(self.back.host.cast(), bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let since = Instant::now();
        while !self.stream.is_null() && matches!(self.is_done(), Ok(false)) {
            if since.elapsed() > PATIENCE {
                // Work that never ends may still write there.
                return;
            }
            sleep(Duration::from_millis(1));
        }
        let driver = &self.libraries.driver;
        for Way { device, host } in [&self.out, &self.back] {
            if !host.is_null() {
                // SAFETY: allocated above, freed once, and no work is left. Nobody could act on an error; so below.
                unsafe { (driver.free_host)(*host) };
            }
            if *device != 0 {
                // SAFETY: as above.
                unsafe { (driver.free)(*device) };
            }
        }
        if !self.stream.is_null() {
            // SAFETY: as above.
            unsafe { (driver.destroy_stream)(self.stream) };
        }
        // SAFETY: retained once above; the stream and all memory are gone.
        unsafe { (driver.release_context)(self.ordinal) };
    }
}
