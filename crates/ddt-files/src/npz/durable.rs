//! Files and folders that outlast a power cut.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::npz::error::NpzError;

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Replace it in one step.
    Replace,
    /// Leave it alone; writing is an error of kind `AlreadyExists`.
    Keep,
}

/// Writes a file beside its place, syncs it, renames it, and syncs the folder.
pub(crate) fn write_file(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), NpzError> {
    let beside = || -> io::Result<()> {
        // Dropping the temporary file removes it, whatever fails below.
        let mut file = BufWriter::new(new_file(folder_of(path))?);
        write(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        match existing {
            Existing::Replace => file.persist(path)?,
            Existing::Keep => file.persist_noclobber(path)?,
        };
        Ok(())
    };
    beside().map_err(NpzError::io("write", path))?;
    sync_folder(folder_of(path))
}

/// Makes what was created, renamed or removed in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), NpzError> {
    // Elsewhere folders cannot be opened, and renaming is durable on its own or not at all.
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(folder).and_then(|it| it.sync_all()).map_err(NpzError::io("sync", folder))
}

/// Makes a folder, if it is missing, inside one that is there.
pub(crate) fn create_folder(path: &Path) -> Result<(), NpzError> {
    match fs::create_dir(path) {
        Ok(()) => sync_folder(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(NpzError::io("make the folder", path)(error)),
    }
}

/// The folder that holds a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Takes room for `bytes` bytes on the disk, so that a full one is known now; shortens nothing.
pub(crate) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            // Some file systems cannot; there a full disk is known when it is.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
}

fn new_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: the process's mask applies. The default would be readable by its owner alone.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}
