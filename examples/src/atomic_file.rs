//! Files that are either complete or absent, with messages for a command line.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ddt_files::atomic_write;

/// Checks that a file can be written at `path`, before minutes are spent on what goes into it.
///
/// Leaves nothing behind.
///
/// # Errors
///
/// If `path` is a folder or names no file, or if its folder is missing, is not a folder or cannot be written.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.file_name().is_none() || path.is_dir() {
        bail!("expected the path of a file to write, got {:?}; add a file name", path.display());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let (file, place) = (path.display(), folder.display());
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => bail!("cannot write {file}: {place} is not a folder"),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot write {file}: create the folder {place} first"));
        }
    }
    tempfile::tempfile_in(folder).map(drop).with_context(|| {
        format!("cannot write {file}: the folder {place} is not writable; choose another path")
    })
}

/// Writes `bytes` to `path`; an earlier file is replaced in one step.
///
/// # Errors
///
/// As [`check_writable`], and when the disk is full; then `path` is as it was before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    check_writable(path)?;
    atomic_write(path, |file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}; is the disk full?", path.display()))
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
///
/// If `path` is no plain file, cannot be read or is larger.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    // Opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        bail!("{} is not a plain file", path.display());
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        bail!("{} is larger than {max_bytes} bytes", path.display());
    }
    Ok(bytes)
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
}
