//! Paths of files that go together.

use std::path::{Path, PathBuf};

/// A path with an ending after its name; the name of a folder may end in a slash.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(ending);
    name.into()
}
