//! Files that are either the old ones or the new ones, never something between.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::CheckpointError;

/// Replaces the file at `path` with what `write` writes, or leaves it as it is.
///
/// The content goes to a new file in the same folder, which is synced and renamed over `path`; then the
/// folder is synced, so the file survives a power cut. A symbolic link at `path` is replaced, not followed.
///
/// # Errors
///
/// [`CheckpointError::Write`] with the failure of `write` or of the system. The previous file is intact,
/// except that a failure to sync the folder is reported although the new file is in place.
///
/// # Example
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("notes.txt");
/// ddt_files::atomic_write(&path, |file| file.write_all(b"done"))?;
/// assert_eq!(std::fs::read(&path)?, b"done");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn atomic_write<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> Result<T, CheckpointError> {
    write_beside(path, write).map_err(|source| CheckpointError::Write { path: path.to_path_buf(), source })
}

fn write_beside<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Dropping the temporary file removes it, whatever fails below.
    let mut file = BufWriter::new(new_file(folder)?);
    let value = write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(folder)?;
    Ok(value)
}

fn new_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file: the process's mask applies. The default would be readable by its owner alone.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere folders cannot be opened, and renaming is durable on its own or not at all.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Returns the SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
///
/// [`CheckpointError::Read`] if it cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, CheckpointError> {
    let hash = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(hasher)),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    hash().map_err(|source| CheckpointError::Read { path: path.to_path_buf(), source })
}

/// The hash so far, in lower-case hexadecimal.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let error = atomic_write(&path, |file| {
            file.write_all(&[0; 1 << 20])?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
        assert!(error.to_string().contains("file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(files(folder.path()), 1);
        assert_eq!(atomic_write(&path, |file| file.write_all(b"new").map(|()| 7)).unwrap(), 7);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(files(folder.path()), 1);
    }

    #[test]
    fn a_missing_folder_is_a_typed_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("file");
        let error = atomic_write(&path, |_| Ok(())).unwrap_err();
        assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
        // A folder in the way cannot be replaced by a file.
        let error = atomic_write(folder.path(), |_| Ok(())).unwrap_err();
        assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        atomic_write(&folder.path().join("ours"), |_| Ok(())).unwrap();
        assert_eq!(mode("plain"), mode("ours"));
    }

    #[test]
    fn hashes_as_published() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(file.path()).unwrap(), expected);
        assert!(sha256_file(Path::new("/does/not/exist")).is_err());
    }
}
