//! Limits that keep memory bounded whatever a file says.

/// Size of a zip directory, in bytes.
pub(crate) const MAX_DIRECTORY_BYTES: u64 = 4 << 20;

/// Entries of a zip file.
pub(crate) const MAX_ENTRIES: u64 = 10_000;

/// Size of an npy header, in bytes; numpy itself refuses more than 10,000.
pub(crate) const MAX_HEADER_BYTES: u64 = 1 << 16;

/// Dimensions of an array, as in numpy.
pub(crate) const MAX_DIMENSIONS: usize = 64;

/// Values that are read into memory at once: 1 GiB of f64.
pub(crate) const MAX_VALUES: u64 = 1 << 27;

/// No deflated stream grows by more than this factor.
pub(crate) const MAX_INFLATION: u64 = 1032;
