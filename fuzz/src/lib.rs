//! Harness of the fuzz targets: bounds on memory and time, inputs made of parts, planted bugs.

use std::time::Duration;

use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

pub use libfuzzer_sys;

pub mod archive;
#[expect(dead_code, reason = "the tests of ddt-files build more kinds of files")]
#[path = "../../crates/ddt-files/tests/it/builders.rs"]
pub(crate) mod builders;
pub mod parts;
pub mod pickle;
pub mod seeds;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Longest input, in bytes.
pub const MAX_INPUT: usize = 64 << 10;

/// Longest time that an input may take. Of the processor, so that a paused machine is no finding.
const MAX_TIME: Duration = Duration::from_secs(1);

/// Memory that reading an input may take at its peak, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Whatever the input.
    pub fixed: usize,
    /// For each byte of the input.
    pub per_byte: usize,
}

/// Reads an input; panics if that takes more memory or time than it may.
pub fn bounded(input: &[u8], bound: Bound, read: impl FnOnce(&[u8])) {
    if input.len() > MAX_INPUT {
        return;
    }
    let (before, since) = (MEMORY.current_usage(), processor_time());
    MEMORY.reset_peak_usage();
    read(input);
    let took = MEMORY.peak_usage().saturating_sub(before);
    let most = bound.fixed + bound.per_byte * input.len();
    assert!(took <= most, "expected at most {most} bytes of memory for {} bytes, got {took}", input.len());
    let took = processor_time().saturating_sub(since);
    assert!(took < MAX_TIME, "expected less than {MAX_TIME:?}, got {took:?}");
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Lets third-party decoders panic: `ddt_data` catches that and returns an error. What it does not catch is a finding
/// all the same, and so is any panic of this project's own code.
pub fn allow_caught_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_third_party = panic.location().is_some_and(|it| it.file().contains("/registry/src/"));
        if !is_third_party {
            hook(panic);
        }
    }));
}

/// The bug that `cargo xtask fuzz --planted` expects to be found: no seed meets its condition.
pub fn planted(condition: impl FnOnce() -> bool) {
    if cfg!(feature = "planted") && condition() {
        panic!("planted bug");
    }
}

/// A fuzz target: a bound of memory, and the function that reads an input.
#[macro_export]
macro_rules! target {
    ($fixed:expr, $per_byte:expr, $read:expr) => {
        $crate::target!($fixed, $per_byte, $read, ());
    };
    // What is done once, before.
    ($fixed:expr, $per_byte:expr, $read:expr, $first:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $first, |input: &[u8]| {
            $crate::bounded(input, $crate::Bound { fixed: $fixed, per_byte: $per_byte }, $read)
        });
    };
}
