//! Fixed bounds on what a file may ask of memory, each far above any network of this family.

/// Longest JSON header of a safetensors file, in bytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Tensors in one file.
pub(crate) const MAX_TENSORS: usize = 1 << 16;

/// Longest tensor name or storage key, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// Dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 16;

/// Zip directory of a PyTorch file, in bytes.
pub(crate) const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

/// Entries of a PyTorch file: a training checkpoint has three storages for each parameter.
pub(crate) const MAX_ENTRIES: u64 = 1 << 18;

/// The pickle of a PyTorch file, in bytes. It holds names and shapes; the numbers are elsewhere.
pub(crate) const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Inflated size of a compressed zip entry, in bytes. `torch.save` never compresses.
pub(crate) const MAX_INFLATED_BYTES: u64 = 1 << 30;

/// Values that a pickle may build.
pub(crate) const MAX_OBJECTS: usize = 1 << 22;

/// Values on the pickle machine's stack.
pub(crate) const MAX_STACK: usize = 1 << 20;

/// Open marks of the pickle machine, its measure of nesting.
pub(crate) const MAX_MARKS: usize = 1024;

/// Values that a pickle may remember.
pub(crate) const MAX_MEMO: usize = 1 << 21;
