//! Files that are either complete or absent: written beside, synced and renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// Checks that a file can be written at `path`, before minutes are spent on what goes into it.
///
/// Leaves nothing behind.
///
/// # Errors
///
/// If `path` is a folder or names no file, or if its folder is missing, is not a folder or cannot be written.
pub fn check_writable(path: &Path) -> Result<()> {
    create_beside(path).map(drop)
}

/// Writes `bytes` to `path`; an earlier file is replaced in one step.
///
/// # Errors
///
/// As [`check_writable`], and when the disk is full; then `path` is as it was before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create_beside(path)?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {}; is the disk full?", path.display()))?;
    file.persist(path).with_context(|| format!("cannot move the finished file to {}", path.display()))?;
    // The rename lasts through a power cut only once the folder is synced; not every system can do that.
    if cfg!(unix) {
        File::open(folder_of(path)).and_then(|folder| folder.sync_all()).ok();
    }
    Ok(())
}

fn create_beside(path: &Path) -> Result<NamedTempFile> {
    if path.file_name().is_none() || path.is_dir() {
        bail!("expected the path of a file to write, got {:?}; add a file name", path.display());
    }
    let folder = folder_of(path);
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => bail!("cannot write {}: {} is not a folder", path.display(), folder.display()),
        Err(error) => {
            return Err(error).with_context(|| {
                format!("cannot write {}: create the folder {} first", path.display(), folder.display())
            });
        }
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ddt-").suffix(".partial");
    #[cfg(unix)]
    {
        // Temporary files are private by default; this one becomes an ordinary file, under the user's umask.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).with_context(|| {
        format!(
            "cannot write {}: the folder {} is not writable; choose another path",
            path.display(),
            folder.display()
        )
    })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn writes_and_replaces_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.bin");
        check_writable(&path).unwrap();
        assert!(names_in(folder.path()).is_empty());
        write(&path, b"first, and longer").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names_in(folder.path()), ["out.bin"]);
    }

    #[test]
    fn refusals_name_the_path_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"kept").unwrap();
        for (path, expected) in [
            (folder.path().join("missing/out.png"), "create the folder"),
            (file.join("out.png"), "file"),
            (folder.path().to_owned(), "add a file name"),
            (std::path::PathBuf::new(), "add a file name"),
        ] {
            for result in [check_writable(&path), write(&path, b"x")] {
                let message = format!("{:#}", result.unwrap_err());
                assert!(message.contains(expected), "{message}");
                assert!(message.contains(&path.display().to_string()), "{message}");
            }
        }
        assert_eq!(names_in(folder.path()), ["file"]);
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }

    #[cfg(unix)]
    #[test]
    fn a_failed_rename_leaves_nothing_behind_and_files_are_ordinary() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.bin");
        let file = create_beside(&path).unwrap();
        assert_eq!(names_in(folder.path()).len(), 1);
        // A folder takes the place of the target between the check and the rename.
        fs::create_dir(&path).unwrap();
        assert!(file.persist(&path).is_err());
        assert_eq!(names_in(folder.path()), ["out.bin"]);

        let path = folder.path().join("ordinary");
        write(&path, b"x").unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
