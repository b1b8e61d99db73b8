//! Folders that outlast a power cut.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::error::TrainError;

/// Makes a folder and what is missing above it, each synced into the folder that holds it.
pub(crate) fn create_folder(path: &Path) -> Result<(), TrainError> {
    let missing = path.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.is_dir());
    let missing: Vec<&Path> = missing.collect();
    fs::create_dir_all(path).map_err(io_error("create", path))?;
    missing.into_iter().try_for_each(|it| sync_folder(holder(it)))
}

/// Makes what was created, renamed or removed in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), TrainError> {
    // Elsewhere folders cannot be opened, and renaming is durable on its own or not at all.
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(folder).and_then(|it| it.sync_all()).map_err(io_error("sync", folder))
}

/// Removes a folder and all that is in it; one that is not there is removed already.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", folder)),
    }
}

/// Says what was tried where.
pub(crate) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> TrainError + 'a {
    move |source| TrainError::Io { action, path: path.to_owned(), source }
}

fn holder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
