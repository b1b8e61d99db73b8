//! What can go wrong with arrays in files; every case names the file.

use std::io;
use std::path::{Path, PathBuf};

/// Why an array or an archive could not be read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum NpzError {
    /// The system refused; what was there before is unchanged, unless it is part of an unfinished archive.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
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
    /// The first bytes are neither those of npz nor of npy.
    #[error("{} is neither npz nor npy; if it was copied or downloaded, check that it is complete", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The zip container is cut short, damaged, or of a kind that is not read.
    #[error("{}: broken npz: {problem}", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// An array is cut short or damaged.
    #[error("{}: broken array {array}: {problem}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// The array.
        array: String,
        /// The problem.
        problem: String,
    },
    /// An array whose values are not read here, such as strings and pickled objects.
    #[error(
        "{}: array {array} is of type {descr}, expected one of |u1, <i4, <i8, <f2, <f4 and <f8; save it anew with \
         .astype",
        path.display()
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The array.
        array: String,
        /// What numpy calls the type.
        descr: String,
    },
    /// An array in Fortran's order, of which no rows can be read.
    #[error("{}: array {array} is in Fortran order; save it anew with numpy.ascontiguousarray", path.display())]
    FortranOrder {
        /// The file.
        path: PathBuf,
        /// The array.
        array: String,
    },
    /// There is no such array.
    #[error("{} has no array {array}; it has {present}", path.display())]
    NoSuchArray {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        array: String,
        /// What is there.
        present: String,
    },
    /// An array is not what it is to be used as.
    #[error("{}: array {array}: expected {expected}, got {got}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The array.
        array: String,
        /// Type, shape or rows that were needed.
        expected: String,
        /// What there is.
        got: String,
    },
    /// A size is above a fixed limit that protects memory.
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
    /// A job, share or array to write that makes no sense.
    #[error("{what}: expected {expected}, got {got}")]
    Invalid {
        /// The value given.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it was.
        got: String,
    },
    /// What was begun or finished at this place is another job's.
    #[error(
        "{} belongs to another job: {differences}; run the command that began it, choose another place, or remove \
         it", path.display()
    )]
    OtherJob {
        /// The work folder, or the description of a finished archive.
        path: PathBuf,
        /// Every setting that differs.
        differences: String,
    },
    /// A file is in the way that no job here has made.
    #[error("{} exists already, and nothing here says how it was made; choose another place, or remove it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

impl NpzError {
    /// Says what was tried where; for `map_err`.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether a file or folder was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
