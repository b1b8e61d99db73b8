//! What can go wrong between a file and its tensors; every case names the file.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// Why a checkpoint could not be read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Opening or reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Writing failed; a file that was there before is unchanged.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The first bytes belong to no known format.
    #[error(
        "{} is neither safetensors nor a PyTorch zip file; if it was downloaded, check that it is complete",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A PyTorch file from before 1.6, which is a bare pickle or a tar archive.
    #[error(
        "{} is a legacy PyTorch file, expected the zip format; load it in PyTorch 1.6 or newer and save it again",
        path.display()
    )]
    LegacyTorch {
        /// The file.
        path: PathBuf,
    },
    /// The file ends before something that it says it holds.
    #[error("{} ends too early: {what} needs {expected} bytes, the file has {got}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: &'static str,
        /// The end of what was being read, counted from the start of the file.
        expected: u64,
        /// The size of the file.
        got: u64,
    },
    /// A size is above a fixed limit that protects memory.
    #[error("{}: {what} is {got}, the limit is {limit}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// The largest value allowed.
        limit: u64,
        /// The value found.
        got: u64,
    },
    /// There is not enough memory for a tensor.
    #[error("{}: cannot allocate {bytes} bytes", path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// The size asked for.
        bytes: u64,
    },
    /// The header of a safetensors file is malformed.
    #[error("{}: invalid safetensors header: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The zip container of a PyTorch file is malformed or of a kind that PyTorch does not write.
    #[error("{}: invalid zip archive: {problem}", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The pickle of a PyTorch file is malformed or uses what this reader refuses.
    #[error("{}: invalid pickle at byte {offset}: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The position of the offending instruction in the pickle.
        offset: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A PyTorch file holds no dictionary of tensors.
    #[error(
        "{} holds no tensors where they were looked for: expected a dictionary of tensors, or one under `state_dict`",
        path.display()
    )]
    NoTensors {
        /// The file.
        path: PathBuf,
    },
    /// An entry among the tensors of a PyTorch file refers to code outside the short list that is understood.
    #[error(
        "{}: `{name}` refers to `{global}`, which is not loaded because it could run code; expected a tensor",
        path.display()
    )]
    ForbiddenGlobal {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        name: String,
        /// The Python object it refers to.
        global: String,
    },
    /// An entry among the tensors is something else, or a tensor that makes no sense.
    #[error("{}: `{name}` is not a readable tensor: {problem}", path.display())]
    InvalidTensor {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor's element type has no counterpart here.
    #[error("{}: `{name}` has unsupported element type {dtype}", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// The element type, as the file or the library spells it.
        dtype: String,
    },
    /// A tensor was asked for that the file does not have.
    #[error("{} has no tensor `{name}`", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// Two tensors were given the same name by a renaming.
    #[error("{}: both `{first}` and `{second}` would be called `{name}`", path.display())]
    NameCollision {
        /// The file.
        path: PathBuf,
        /// The new name.
        name: String,
        /// The stored name that took it first.
        first: String,
        /// The stored name that wants it too.
        second: String,
    },
    /// The names or shapes differ from those expected; the lists are complete and sorted.
    #[error("{} does not fit: {}", path.display(), summary(missing, unexpected, misshapen))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Names expected but not in the file.
        missing: Vec<String>,
        /// Names in the file but not expected.
        unexpected: Vec<String>,
        /// Names in both whose shapes differ.
        misshapen: Vec<Misshapen>,
    },
    /// The tensor library refused: a device, a conversion, or memory.
    #[error("{}: tensor `{name}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// What the library said.
        source: Box<candle_core::Error>,
    },
}

/// A tensor whose shape is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misshapen {
    /// The name of the tensor.
    pub name: String,
    /// The shape that was expected.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub got: Vec<usize>,
}

/// Names shown of each list in a message; the error's fields hold them all.
const SHOWN: usize = 12;

fn summary(missing: &[String], unexpected: &[String], misshapen: &[Misshapen]) -> String {
    let shapes: Vec<String> = misshapen
        .iter()
        .map(|it| format!("{} (expected {:?}, got {:?})", it.name, it.expected, it.got))
        .collect();
    let mut text = String::new();
    for (label, names) in [("missing", missing), ("unexpected", unexpected), ("misshapen", &shapes)] {
        if names.is_empty() {
            continue;
        }
        let separator = if text.is_empty() { "" } else { "; " };
        let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{} {label}: {shown}", names.len());
        if names.len() > SHOWN {
            let _ = write!(text, ", and {} more", names.len() - SHOWN);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_shows_twelve_names_and_counts_the_rest() {
        let missing: Vec<String> = (0..15).map(|i| format!("m{i:02}")).collect();
        let error = CheckpointError::Mismatch {
            path: PathBuf::from("a.ckpt"),
            missing,
            unexpected: vec!["u".to_string()],
            misshapen: vec![Misshapen { name: "s".to_string(), expected: vec![2], got: vec![3, 4] }],
        };
        let text = error.to_string();
        assert!(text.starts_with("a.ckpt does not fit: 15 missing: m00, m01"), "{text}");
        assert!(text.contains("m11, and 3 more; 1 unexpected: u; 1 misshapen: s (expected [2], got [3, 4])"));
        assert!(!text.contains("m12"), "{text}");
    }
}
