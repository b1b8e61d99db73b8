//! The crate's error: every case names the file and says what was expected.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused. A file that was to be replaced is the old one or the new one.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "sync", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is damaged, cut short, or of a format that is not read.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do where that is known.
        problem: String,
    },
    /// A size is above the fixed limit that bounds memory.
    #[error("{}: {what} is {got}, the limit is {limit}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: String,
        /// The largest value allowed.
        limit: u64,
        /// The value found.
        got: u64,
    },
    /// A tensor or array is not there, or not one that can be read or written.
    #[error("{}: `{name}`: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor or array.
        name: String,
        /// The problem.
        problem: String,
    },
    /// The names or shapes are not those expected; the lists are complete and sorted.
    #[error("{} does not fit: {}{}", path.display(), summary(missing, unexpected, misshapen), advice(remedy))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Names expected but not in the file.
        missing: Vec<String>,
        /// Names in the file but not expected.
        unexpected: Vec<String>,
        /// Names in both whose shapes differ.
        misshapen: Vec<Misshapen>,
        /// How to read the file all the same, where that is known.
        remedy: Option<Box<str>>,
    },
    /// Something is in the way that was not made here, or was made for something else.
    #[error("{} {problem}", path.display())]
    Conflict {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what to do.
        problem: String,
    },
    /// An argument makes no sense.
    #[error("{what}: expected {expected}, got {got}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it was.
        got: String,
    },
}

impl FileError {
    /// Says what was tried where; for `map_err`.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Names the tensor or array that cannot be had.
    pub fn tensor(path: &Path, name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), name: clip(name), problem: problem.into() }
    }

    /// The error of a name that is not in the file.
    pub fn not_found(path: &Path, name: &str) -> Self {
        Self::tensor(path, name, "no tensor of this name")
    }

    pub(crate) fn format(path: &Path, problem: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), problem: problem.into() }
    }

    /// Whether a file or folder was not there.
    #[cfg(test)]
    pub(crate) fn is_missing_file(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
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

/// Refuses a size above a limit.
pub(crate) fn check_limit(
    path: &Path,
    what: impl Into<String>,
    limit: u64,
    got: u64,
) -> Result<(), FileError> {
    if got <= limit {
        return Ok(());
    }
    Err(FileError::Limit { path: path.to_owned(), what: what.into(), limit, got })
}

/// Shortens text from a file so that it fits a message.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

/// Lists names for a message, at most twelve; the error's fields hold them all.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(|it| clip(it)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        // Writing to a string cannot fail.
        let _ = write!(text, ", and {} more", names.len() - SHOWN);
    }
    text
}

fn summary(missing: &[String], unexpected: &[String], misshapen: &[Misshapen]) -> String {
    let shapes: Vec<String> = misshapen
        .iter()
        .map(|it| format!("{} (expected {:?}, got {:?})", it.name, it.expected, it.got))
        .collect();
    let lists = [("missing", missing), ("unexpected", unexpected), ("misshapen", &shapes)];
    let parts = lists.into_iter().filter(|(_, names)| !names.is_empty());
    let parts: Vec<String> =
        parts.map(|(label, names)| format!("{} {label}: {}", names.len(), list(names))).collect();
    parts.join("; ")
}

fn advice(remedy: &Option<Box<str>>) -> String {
    remedy.as_ref().map_or_else(String::new, |it| format!("; {it}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_shows_twelve_names_and_counts_the_rest() {
        let missing: Vec<String> = (0..15).map(|i| format!("m{i:02}")).collect();
        let error = FileError::Mismatch {
            path: PathBuf::from("a.ckpt"),
            missing,
            unexpected: vec!["u".to_string()],
            misshapen: vec![Misshapen { name: "s".to_string(), expected: vec![2], got: vec![3, 4] }],
            remedy: Some("do this".into()),
        };
        let text = error.to_string();
        assert!(text.starts_with("a.ckpt does not fit: 15 missing: m00, m01"), "{text}");
        assert!(text.contains("m11, and 3 more; 1 unexpected: u; 1 misshapen: s (expected [2], got [3, 4])"));
        assert!(text.ends_with("; do this") && !text.contains("m12"), "{text}");
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip("abc"), "abc");
        let long = clip(&"é".repeat(100));
        assert_eq!(long, format!("{}...", "é".repeat(80)));
    }
}
