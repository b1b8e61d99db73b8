//! Everything that changes the disk, in one place where tests can make any step of it fail.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::FileError;

/// The disk as the writers of this workspace see it. The default is the real one.
///
/// A test can put a function before every change of the disk ([`checked_by`](Self::checked_by)); the error that it
/// returns becomes that change's error. [`faults`](crate::faults) makes every change of a job fail in turn.
///
/// ```
/// use std::io;
/// use ddt_files::{Change, FileSystem};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("notes.txt");
/// FileSystem::default().atomic_write(&path, |file| file.write_all(b"old"))?;
///
/// let full = FileSystem::checked_by(|change| match change {
///     Change::Write { .. } => Err(io::ErrorKind::StorageFull.into()),
///     _ => Ok(()),
/// });
/// assert!(full.atomic_write(&path, |file| file.write_all(b"new")).is_err());
/// assert_eq!(std::fs::read(&path)?, b"old");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct FileSystem {
    check: Option<Arc<Check>>,
    /// Leaves out syncs, which cost time and which tests of faults model themselves.
    lazy: bool,
}

type Check = dyn Fn(&Change<'_>) -> io::Result<()> + Send + Sync;

/// One operation that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<'a> {
    /// Making a folder.
    CreateFolder(&'a Path),
    /// Opening a file for writing; it is made if it is missing.
    Open(&'a Path),
    /// Writing some bytes at an offset.
    Write(&'a Path, u64, &'a [u8]),
    /// Making a file longer or shorter, to so many bytes.
    Resize(&'a Path, u64),
    /// Bringing a file's content to the disk.
    Sync(&'a Path),
    /// Renaming a file or folder, from one path to another.
    Rename(&'a Path, &'a Path),
    /// Making a symbolic link that leads to the second path.
    Link(&'a Path, &'a Path),
    /// Bringing a folder's entries to the disk.
    SyncFolder(&'a Path),
    /// Removing a file, or a folder with all that is in it.
    Remove(&'a Path),
}

impl Change<'_> {
    fn action(&self) -> &'static str {
        match self {
            Self::CreateFolder(_) => "create the folder",
            Self::Open(_) => "open",
            Self::Write(..) => "write",
            Self::Resize(..) => "resize",
            Self::Sync(_) => "sync",
            Self::Rename(..) => "rename",
            Self::Link(..) => "link",
            Self::SyncFolder(_) => "sync the folder",
            Self::Remove(_) => "remove",
        }
    }
}

impl FileSystem {
    /// The real disk, with `check` called before every change.
    pub fn checked_by(check: impl Fn(&Change<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { check: Some(Arc::new(check)), lazy: false }
    }

    /// The same without syncing.
    pub(crate) fn lazy(self) -> Self {
        Self { lazy: true, ..self }
    }

    /// Replaces the file at `path` with what `write` writes, or leaves it as it is.
    ///
    /// The content goes to a new file in the same folder, which is synced and renamed over `path`; then the
    /// folder is synced, so the file survives a power cut. A symbolic link at `path` is replaced, not followed.
    ///
    /// # Errors
    /// [`FileError::Io`] with the failure of `write` or of the system. The previous file is intact, except that
    /// a failure to sync the folder is reported although the new file is in place.
    pub fn atomic_write<T>(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> Result<T, FileError> {
        let failed = |source| FileError::io("write", path)(source);
        let file = self.create_beside(path).map_err(failed)?;
        let beside = file.path.clone();
        let written = (|| {
            let mut file = BufWriter::new(file);
            let value = write(&mut file)?;
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.step(&Change::Sync(&beside), File::sync_all)?;
            self.step(&Change::Rename(&beside, path), || fs::rename(&beside, path))?;
            Ok(value)
        })();
        if written.is_err() {
            // The first error is the one to report.
            let _ = self.step(&Change::Remove(&beside), || fs::remove_file(&beside));
        }
        let value = written.map_err(failed)?;
        self.sync_folder(folder_of(path))?;
        Ok(value)
    }

    /// Makes a hidden file beside `path`, under a name that no other write uses.
    fn create_beside(&self, path: &Path) -> io::Result<DiskFile> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        if path.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected the path of a file"));
        }
        loop {
            let number = WRITES.fetch_add(1, Ordering::Relaxed);
            let beside = path.with_file_name(format!("{WRITING}{}-{number}", process::id()));
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            match self.step(&Change::Open(&beside), || options.open(&beside)) {
                Ok(file) => return Ok(DiskFile { file, path: beside, system: self.clone() }),
                // Left behind by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Opens a file for reading and writing; makes it if it is missing, and cuts nothing off.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(&self, path: &Path) -> Result<DiskFile, FileError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = self.run(&Change::Open(path), path, || options.open(path))?;
        Ok(DiskFile { file, path: path.to_owned(), system: self.clone() })
    }

    /// Makes a folder inside one that is there, and syncs that; a folder that is there already stays.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create_folder(&self, path: &Path) -> Result<(), FileError> {
        let create = Change::CreateFolder(path);
        let made = self.step(&create, || fs::create_dir(path));
        match made {
            Ok(()) => self.sync_folder(folder_of(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(FileError::io(create.action(), path)(error)),
        }
    }

    /// Makes a folder and those above it that are missing, each synced into the folder that holds it.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create_folders(&self, path: &Path) -> Result<(), FileError> {
        let mut missing: Vec<&Path> =
            path.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.is_dir()).collect();
        missing.reverse();
        missing.into_iter().try_for_each(|it| self.create_folder(it))
    }

    /// Renames a file or folder and syncs the folder that `to` is in.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.run(&Change::Rename(from, to), from, || fs::rename(from, to))?;
        self.sync_folder(folder_of(to))
    }

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn remove_file(&self, path: &Path) -> Result<(), FileError> {
        self.run(&Change::Remove(path), path, || present(fs::remove_file(path)))
    }

    /// Makes a symbolic link at `path` that leads to `target`.
    ///
    /// # Errors
    /// [`FileError::Io`].
    #[cfg(unix)]
    pub fn link(&self, path: &Path, target: &Path) -> Result<(), FileError> {
        self.run(&Change::Link(path, target), path, || std::os::unix::fs::symlink(target, path))?;
        self.sync_folder(folder_of(path))
    }

    /// Removes a folder with all that is in it; one that is not there is removed already.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn remove_folder(&self, folder: &Path) -> Result<(), FileError> {
        self.run(&Change::Remove(folder), folder, || present(fs::remove_dir_all(folder)))
    }

    /// Brings to the disk what was created, renamed or removed in a folder.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync_folder(&self, folder: &Path) -> Result<(), FileError> {
        // Elsewhere folders cannot be opened, and renaming is durable on its own or not at all.
        let sync = || if cfg!(unix) && !self.lazy { File::open(folder)?.sync_all() } else { Ok(()) };
        self.run(&Change::SyncFolder(folder), folder, sync)
    }

    fn run<T>(
        &self,
        change: &Change<'_>,
        path: &Path,
        run: impl FnMut() -> io::Result<T>,
    ) -> Result<T, FileError> {
        self.step(change, run).map_err(FileError::io(change.action(), path))
    }

    /// A change that a signal interrupts is made again.
    fn step<T>(&self, change: &Change<'_>, mut run: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let checked = self.check.as_ref().map_or(Ok(()), |check| check(change));
            match checked.and_then(|()| run()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The outcome of removing what may be absent.
fn present(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSystem").field("checked", &self.check.is_some()).finish()
    }
}

/// The names of files that are being written begin with this.
pub(crate) const WRITING: &str = ".writing-";

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// [`FileSystem::atomic_write`] to the real disk.
///
/// # Errors
/// [`FileError::Io`]; the previous file is then intact.
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
) -> Result<T, FileError> {
    FileSystem::default().atomic_write(path, write)
}

/// A file that was opened for writing by a [`FileSystem`].
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
    system: FileSystem,
}

impl DiskFile {
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// [`FileError::Io`], as for every method.
    pub fn size(&self) -> Result<u64, FileError> {
        self.file.metadata().map(|it| it.len()).map_err(FileError::io("read", &self.path))
    }

    /// Writes all of `bytes` at `offset`, and stays behind them.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let written = self.seek(SeekFrom::Start(offset)).and_then(|_| self.write_all(bytes));
        written.map_err(FileError::io("write", &self.path))
    }

    /// Cuts or lengthens the file to `bytes`; what is added is zero.
    pub fn resize(&mut self, bytes: u64) -> Result<(), FileError> {
        let done = self.step(&Change::Resize(&self.path, bytes), |file| file.set_len(bytes));
        done.map_err(FileError::io("resize", &self.path))
    }

    /// Takes room for `bytes` on the disk, so that a full one is known now; shortens nothing.
    pub fn allocate(&mut self, bytes: u64) -> Result<(), FileError> {
        let size = self.size()?.max(bytes);
        let done = self.step(&Change::Resize(&self.path, size), |file| allocate(file, bytes));
        done.map_err(FileError::io("take room on the disk for", &self.path))
    }

    /// Brings the content to the disk.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.step(&Change::Sync(&self.path), File::sync_all).map_err(FileError::io("sync", &self.path))
    }

    /// Locks the file for this opening of it, until it is dropped; false if another opening has the lock.
    pub fn try_lock(&self) -> Result<bool, FileError> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(FileError::io("lock", &self.path)(error)),
        }
    }

    /// Locks the file as [`try_lock`](Self::try_lock), and waits for another opening to unlock it.
    pub fn lock(&self) -> Result<(), FileError> {
        self.file.lock().map_err(FileError::io("lock", &self.path))
    }

    fn step(&self, change: &Change<'_>, mut run: impl FnMut(&File) -> io::Result<()>) -> io::Result<()> {
        let skip = self.system.lazy && matches!(change, Change::Sync(_));
        self.system.step(change, || if skip { Ok(()) } else { run(&self.file) })
    }
}

/// Unlocks the file. Closing it is not enough: a child process that was being started meanwhile has it open too, until
/// it runs its own program.
impl Drop for DiskFile {
    fn drop(&mut self) {
        self.file.unlock().ok();
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = &self.file;
        let at = if self.system.check.is_some() { file.stream_position()? } else { 0 };
        self.system.step(&Change::Write(&self.path, at, bytes), || file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for DiskFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            // Some file systems cannot; there a full disk is known when it is full.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let error = atomic_write(&path, |file| {
            file.write_all(&[0; 1 << 20])?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(
            error.to_string().starts_with("cannot write") && error.to_string().contains("file"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(files(folder.path()), 1);
        assert_eq!(atomic_write(&path, |file| file.write_all(b"new").map(|()| 7)).unwrap(), 7);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(files(folder.path()), 1);
    }

    #[test]
    fn paths_that_cannot_be_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        // A missing folder; a folder in the way, which no file can replace; no name at all.
        for path in [folder.path().join("missing/file"), folder.path().to_owned(), "..".into(), "/".into()] {
            let error = atomic_write(&path, |_| Ok(())).unwrap_err();
            assert!(matches!(error, FileError::Io { action: "write", .. }), "{error}");
        }
        assert_eq!(files(folder.path()), 0);
    }

    #[cfg(unix)]
    #[test]
    fn the_file_has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("plain"), "").unwrap();
        atomic_write(&folder.path().join("ours"), |_| Ok(())).unwrap();
        assert_eq!(mode("plain"), mode("ours"));
    }

    #[test]
    fn folders_are_made_renamed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (deep, system) = (folder.path().join("a/b/c"), FileSystem::default());
        assert!(system.create_folder(&deep).is_err());
        system.create_folders(&deep).unwrap();
        system.create_folder(&deep).unwrap();
        system.rename(&folder.path().join("a"), &folder.path().join("d")).unwrap();
        assert!(folder.path().join("d/b/c").is_dir());
        system.remove_folder(&folder.path().join("d")).unwrap();
        system.remove_folder(&folder.path().join("d")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(system.create_folder(&folder.path().join("file")).is_err());
        assert_eq!(files(folder.path()), 1);
    }

    #[test]
    fn one_opening_of_a_file_has_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let open = || FileSystem::default().open(&folder.path().join("file")).unwrap();
        let (mut first, second) = (open(), open());
        assert!(first.try_lock().unwrap() && !second.try_lock().unwrap());
        first.write_at(3, b"x").unwrap();
        first.allocate(2).unwrap();
        assert_eq!(second.size().unwrap(), 4);
        first.resize(1).unwrap();
        first.sync().unwrap();
        assert_eq!(fs::read(second.path()).unwrap(), b"\0");
        drop(first);
        second.lock().unwrap();
    }
}
