//! The crate's error: every case names the file and says what was expected.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused; the source has its reason.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation: "read", "write", "sync", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is damaged, of a format that is not read, above a limit, without what was looked for, or
    /// somebody else's.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// The problem, and the remedy where that is known.
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
    /// An argument makes no sense.
    #[error("{what}: expected {expected}, got {got}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// The values allowed.
        expected: String,
        /// The value given.
        got: String,
    },
}

impl FileError {
    /// Names the failed operation and the path; for `map_err`.
    pub fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Names the problem of a file, and the remedy where that is known.
    pub fn unusable(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), problem: problem.into() }
    }

    /// Names the problem of a tensor or array of a file.
    pub fn tensor(path: &Path, name: &str, problem: impl AsRef<str>) -> Self {
        Self::unusable(path, format!("`{}`: {}", clip(name), problem.as_ref()))
    }

    /// The error of a name that is not in the file.
    pub fn not_found(path: &Path, name: &str) -> Self {
        Self::tensor(path, name, "no tensor of this name")
    }

    pub(crate) fn invalid(what: &'static str, expected: impl Into<String>, got: impl ToString) -> Self {
        Self::Invalid { what, expected: expected.into(), got: got.to_string() }
    }

    /// Whether a file or folder does not exist.
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
pub(crate) fn check_limit(path: &Path, what: &str, limit: u64, got: u64) -> Result<(), FileError> {
    if got <= limit {
        return Ok(());
    }
    Err(FileError::unusable(path, format!("{what} is {got}, the limit is {limit}")))
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
pub(crate) fn list(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(|it| clip(it.as_ref())).collect::<Vec<_>>().join(", ");
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
    fn a_reason_is_printed_once() {
        let error = crate::read_file(Path::new("/absent/file"), 1).unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.starts_with("cannot read /absent/file: "), "{text}");
        let reason = io::Error::from_raw_os_error(2).to_string();
        assert_eq!(text.matches(&reason).count(), 1, "{text}");
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip("abc"), "abc");
        let long = clip(&"é".repeat(100));
        assert_eq!(long, format!("{}...", "é".repeat(80)));
    }
}
