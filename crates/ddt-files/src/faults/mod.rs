//! For tests: makes every change of the disk that a job makes fail in turn, and ends the job before each.
//!
//! After every fault the same job runs again on a good disk and must end with the bytes of an undisturbed run. A kill
//! may come with a power cut: then bytes that were not synced, and names whose folder was not, are lost or kept, all
//! or some of them.

mod disk;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::disk::{Disk, Entry, Tree};
use crate::file_system::WRITING;
use crate::{Change, FileSystem};

/// A kind of fault, at one change of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full from here on.
    Full,
    /// Half of the bytes are written, and the disk is full from here on.
    Short,
    /// The disk fails once.
    Failing,
    /// A signal interrupts the change, once.
    Interrupted,
    /// The disk cannot be written from here on.
    ReadOnly,
    /// The process is killed before the change or in the middle of it, with or without a power cut.
    Kill,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Full, Self::Short, Self::Failing, Self::Interrupted, Self::ReadOnly, Self::Kill];

    fn error(self) -> io::Error {
        let kind = match self {
            Self::Failing => ErrorKind::Other,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            Self::Full | Self::Short | Self::Kill => ErrorKind::StorageFull,
        };
        io::Error::new(kind, REASON)
    }
}

const REASON: &str = "a fault of the disk, by the test";

/// A job, in a folder.
pub type Run<'a> = dyn Fn(&FileSystem, &Path) -> Outcome + 'a;

/// Its outcome.
pub type Outcome = Result<(), Box<dyn Error>>;

/// A job that writes into a folder.
pub struct Job<'a> {
    /// Does it, through the file layer.
    pub run: &'a Run<'a>,
    /// Whether the bytes of a file are part of the outcome; files that are being written never are.
    pub counts: &'a dyn Fn(&Path) -> bool,
}

impl Job<'_> {
    fn run(&self, system: FileSystem, place: &Path) -> Result<(), String> {
        (self.run)(&system.lazy(), place).map_err(|error| {
            let causes = std::iter::successors(error.source(), |it| (**it).source());
            causes.fold(error.to_string(), |text, it| format!("{text}: {it}"))
        })
    }
}

/// Numbers of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Changes of the disk in an undisturbed run.
    pub changes: usize,
    /// Faults tried; disks after a kill that are equal count once.
    pub tried: usize,
    /// Faults that did not stop the job.
    pub harmless: usize,
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes, {} faults, {} of them harmless", self.changes, self.tried, self.harmless)
    }
}

/// Tries faults at every change that a job makes in `place`, which holds what the job begins with.
///
/// # Errors
/// The first fault that the job does not survive, and why. A job must succeed on a good disk, also after the fault, and
/// end with the same bytes; its error must state the disk's reason once; it must leave no half of a file under its name,
/// and change the disk through the file layer only.
pub fn sweep(place: &Path, faults: &[Fault], job: &Job<'_>) -> Result<Swept, String> {
    let begun = read(place)?;
    let record = Arc::new(Mutex::new(Record::new(place, &begun)));
    let recorder = record.clone();
    let system = FileSystem::checked_by(move |change| {
        lock(&recorder).note(change);
        Ok(())
    });
    job.run(system, place).map_err(|error| format!("undisturbed: {error}"))?;
    lock(&record).note_kills(None);
    let record = std::mem::replace(&mut *lock(&record), Record::new(place, &begun));
    let end = read(place)?;
    if let Some(path) = difference(&record.disk.now(), &end, &|_| true) {
        return Err(format!("{} is not written through the file layer", path.display()));
    }
    let test = Test { place, job, begun: &begun, end: &end, record: &record };
    let mut swept = Swept { changes: record.changes.len(), ..Swept::default() };
    for &fault in faults.iter().filter(|it| **it != Fault::Kill) {
        for (at, change) in record.changes.iter().enumerate() {
            if fault == Fault::Short && !change.starts_with("Write") {
                continue;
            }
            swept.tried += 1;
            let harmless = test.fail(fault, at);
            swept.harmless +=
                usize::from(harmless.map_err(|it| format!("{fault:?} at {at}, {change}: {it}"))?);
        }
    }
    if faults.contains(&Fault::Kill) {
        for (at, tree) in &record.killed {
            swept.tried += 1;
            let change = record.changes.get(*at).map_or("the end", String::as_str);
            test.resume(tree).map_err(|it| format!("killed at {at}, {change}: {it}"))?;
        }
    }
    Ok(swept)
}

struct Test<'a> {
    place: &'a Path,
    job: &'a Job<'a>,
    begun: &'a Tree,
    end: &'a Tree,
    record: &'a Record,
}

impl Test<'_> {
    /// Runs the job with a fault, and again without; whether the fault did not matter.
    fn fail(&self, fault: Fault, at: usize) -> Result<bool, String> {
        disk::put(self.begun, self.place).map_err(|it| it.to_string())?;
        let count = Mutex::new(0);
        let system = FileSystem::checked_by(move |change| {
            let mut count = lock(&count);
            *count += 1;
            let since = *count > at && !matches!(fault, Fault::Failing | Fault::Interrupted);
            match *count - 1 == at {
                true if fault == Fault::Short => write_half(change)?,
                false if !since => return Ok(()),
                _ => {}
            }
            Err(fault.error())
        });
        let Err(error) = self.job.run(system, self.place) else {
            return self.compare().map(|()| true);
        };
        if fault == Fault::Interrupted {
            return Err(format!("expected another try, got {error}"));
        }
        if error.matches(REASON).count() != 1 || !error.contains(&*self.place.to_string_lossy()) {
            return Err(format!("expected an error with path and reason, got {error}"));
        }
        self.whole(&read(self.place)?)?;
        self.again().map(|()| false)
    }

    /// Runs the job on what a kill has left.
    fn resume(&self, tree: &Tree) -> Result<(), String> {
        self.whole(tree)?;
        disk::put(tree, self.place).map_err(|it| it.to_string())?;
        self.again()
    }

    fn again(&self) -> Result<(), String> {
        let ran = self.job.run(FileSystem::default(), self.place);
        ran.map_err(|error| format!("the next run: {error}"))?;
        self.compare()
    }

    fn compare(&self) -> Result<(), String> {
        match difference(self.end, &read(self.place)?, self.job.counts) {
            Some(path) => Err(format!("{} is not that of an undisturbed run", path.display())),
            None => Ok(()),
        }
    }

    /// Whether every file that got its name by renaming has the bytes that it had then.
    fn whole(&self, tree: &Tree) -> Result<(), String> {
        for (path, entry) in tree {
            if let (Some(whole), Entry::File(bytes)) = (self.record.whole.get(path), entry)
                && !whole.contains(&hash(bytes))
                && self.begun.get(path) != Some(entry)
            {
                return Err(format!("{} is torn: {} bytes", path.display(), bytes.len()));
            }
        }
        Ok(())
    }
}

/// An undisturbed run.
struct Record {
    place: PathBuf,
    disk: Disk,
    changes: Vec<String>,
    /// Disks after a kill before or in a change, each once.
    killed: Vec<(usize, Tree)>,
    seen: HashSet<Vec<(PathBuf, u64)>>,
    /// The bytes of files when they were given their names by renaming.
    whole: BTreeMap<PathBuf, BTreeSet<u64>>,
}

impl Record {
    fn new(place: &Path, begun: &Tree) -> Self {
        Self {
            place: place.to_owned(),
            disk: Disk::new(place, begun),
            changes: Vec::new(),
            killed: Vec::new(),
            seen: HashSet::new(),
            whole: BTreeMap::new(),
        }
    }

    /// Notes what a kill leaves before a change and in it.
    fn note_kills(&mut self, change: Option<&Change<'_>>) {
        let mut trees = self.disk.after_power_cuts();
        trees.extend(change.and_then(|it| self.disk.torn(it)));
        for tree in trees {
            let entry = |(path, entry): (&PathBuf, &Entry)| match entry {
                Entry::File(bytes) => (path.clone(), hash(bytes)),
                Entry::Folder => (path.clone(), 0),
                Entry::Link(_) => (path.clone(), 1),
            };
            if self.seen.insert(tree.iter().map(entry).collect()) {
                self.killed.push((self.changes.len(), tree));
            }
        }
    }

    fn note(&mut self, change: &Change<'_>) {
        self.note_kills(Some(change));
        self.disk.apply(change);
        let mut text = format!("{change:?}");
        text.truncate(text.char_indices().nth(200).map_or(text.len(), |it| it.0));
        self.changes.push(text);
        if let Change::Rename(_, to) = change {
            let Ok(to) = to.strip_prefix(&self.place) else { return };
            for (path, entry) in self.disk.now().iter().filter(|it| it.0.starts_with(to)) {
                if let Entry::File(bytes) = entry {
                    self.whole.entry(path.clone()).or_default().insert(hash(bytes));
                }
            }
        }
    }
}

/// Writes half of the bytes of a change, as a disk does that is full then.
fn write_half(change: &Change<'_>) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    if let Change::Write(path, at, bytes) = change {
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(*at))?;
        file.write_all(&bytes[..bytes.len() / 2])?;
    }
    Ok(())
}

/// The first path that is not the same in both trees, among those that count.
fn difference(a: &Tree, b: &Tree, counts: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let written = |it: &Path| it.file_name().is_some_and(|it| it.to_string_lossy().starts_with(WRITING));
    let mut paths = a.keys().chain(b.keys()).filter(|it| !written(it) && counts(it));
    paths.find(|it| a.get(*it) != b.get(*it)).cloned()
}

fn hash(bytes: &[u8]) -> u64 {
    (bytes.len() as u64) << 32 | u64::from(crc32fast::hash(bytes))
}

fn read(place: &Path) -> Result<Tree, String> {
    disk::read(place).map_err(|error| format!("cannot read {}: {error}", place.display()))
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(run: &Run<'_>) -> String {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("file"), "old content").unwrap();
        sweep(place.path(), &Fault::ALL, &Job { run, counts: &|_| true }).unwrap_err()
    }

    #[test]
    fn careless_jobs_are_found() {
        let beside = |it: &Path| (it.join("beside"), it.join("file"));
        let no_sync = errors(&|system, place| {
            let (beside, file) = beside(place);
            system.open(&beside)?.write_at(0, b"new content")?;
            Ok(system.rename(&beside, &file)?)
        });
        assert!(no_sync.contains("file is torn: 0 bytes"), "{no_sync}");
        let past_the_layer = errors(&|_, place| Ok(std::fs::write(place.join("file"), "new content")?));
        assert!(past_the_layer.contains("file is not written through the file layer"), "{past_the_layer}");
        let in_place = errors(&|system, place| {
            let mut file = system.open(&place.join("file"))?;
            // The first bytes stand for all, which they do not after a kill.
            if std::fs::read(file.path())?[..3] != *b"new" {
                file.write_at(0, b"new ")?;
                file.write_at(4, b"matters")?;
            }
            Ok(())
        });
        assert!(in_place.contains("file is not that of an undisturbed run"), "{in_place}");
        let silent = errors(&|system, place| {
            system.atomic_write(&place.join("file"), |it| it.write_all(b"new")).ok();
            Ok(())
        });
        assert!(silent.starts_with("Full at 0, Open"), "{silent}");
        let nameless = errors(&|system, place| {
            let written = system.atomic_write(&place.join("file"), |it| it.write_all(b"new"));
            written.map_err(|_| "the disk is full".into())
        });
        assert!(nameless.contains("expected an error with path and reason"), "{nameless}");
    }

    #[test]
    fn a_careful_job_survives_everything() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("file"), "old content").unwrap();
        let run = |system: &FileSystem, place: &Path| -> Outcome {
            system.create_folders(&place.join("a/b"))?;
            system.atomic_write(&place.join("a/b/file"), |it| it.write_all(b"first"))?;
            system.rename(&place.join("a/b/file"), &place.join("file"))?;
            Ok(system.remove_folder(&place.join("a"))?)
        };
        let swept = sweep(place.path(), &Fault::ALL, &Job { run: &run, counts: &|_| true }).unwrap();
        // Two folders, a file, its place, and all removed again; each of the folders synced.
        assert_eq!(swept.changes, 2 * 2 + 5 + 2 + 1, "{swept}");
        assert!(swept.tried > 4 * swept.changes && swept.harmless >= swept.changes, "{swept}");
    }
}
