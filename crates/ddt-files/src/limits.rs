//! Fixed bounds on what a file may ask of memory, each far above any network or data set of this family.

/// Longest JSON header of a safetensors file, and longest index of several, in bytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Files of one index.
pub(crate) const MAX_PARTS: u64 = 1 << 10;

/// Tensors in one file, or in all files of an index.
pub(crate) const MAX_TENSORS: usize = 1 << 16;

/// Longest tensor name or storage key, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// Dimensions of a tensor or array, as in numpy.
pub(crate) const MAX_RANK: usize = 64;

/// Entries of a zip archive: a training checkpoint has three storages for each parameter.
pub(crate) const MAX_ENTRIES: u64 = 1 << 18;

/// No deflated stream grows by more than this factor.
pub(crate) const MAX_INFLATION: u64 = 1032;

/// The part of a deflated zip entry that is read into memory at once, in bytes.
pub(crate) const MAX_INFLATED_BYTES: u64 = 1 << 30;

/// The pickle of a PyTorch file, in bytes. It holds names and shapes; the numbers are elsewhere.
pub(crate) const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Values that a pickle may build.
pub(crate) const MAX_OBJECTS: usize = 1 << 22;

/// Values on the pickle machine's stack.
pub(crate) const MAX_STACK: usize = 1 << 20;

/// Open marks of the pickle machine, its measure of nesting.
pub(crate) const MAX_MARKS: usize = 1024;

/// Values that a pickle may remember.
pub(crate) const MAX_MEMO: usize = 1 << 21;

/// Header of an npy array, in bytes; numpy itself refuses more than 10,000.
pub(crate) const MAX_NPY_HEADER_BYTES: u64 = 1 << 16;

/// Values of an npy array that are read into memory at once: 1 GiB of f64.
pub(crate) const MAX_VALUES: u64 = 1 << 27;

/// Description of a data set, in bytes.
pub(crate) const MAX_DESCRIPTION_BYTES: u64 = 16 << 20;
