//! Run folder: checkpoints and log on disk, such that a kill loses nothing that was saved.
//!
//! ```text
//! run/
//!   run.lock                                 held while processes train
//!   log.jsonl                                one line per logged step, cut back to the checkpoint on resume
//!   checkpoints/step-0000000200/             weights, moments, averages, state.json
//!   checkpoints/.partial-step-0000000300/    being written
//!   checkpoints/.old-step-0000000300/        moved aside for a new one of the same step
//! ```
//!
//! A checkpoint is written as a `.partial-` folder, synced, read back and renamed; an older one of the same step
//! is first moved aside, and removed last. So at any moment every saved checkpoint is complete under one of the
//! three names, and resuming takes the newest step that is complete under any of them.
//!
//! Several ranks share one folder: rank 0 holds the lock, writes the log and moves folders; all write checkpoints.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ddt_dist::{Alone, Group, MAX_PAYLOAD};
use ddt_files::{DiskFile, FileError, FileSystem};

use crate::{
    checkpoint,
    error::{TrainError, in_full},
    objective::Objective,
    ranks::{agree_on, agreed},
    trainer::Trainer,
};

/// A run's folder, locked for this process, or for all ranks of its group.
#[derive(Debug)]
pub struct RunFolder {
    system: FileSystem,
    path: PathBuf,
    group: Arc<dyn Group>,
    /// Of rank 0.
    log: Option<Log>,
}

/// The log, and the lock that goes with the right to write it.
#[derive(Debug)]
struct Log {
    file: DiskFile,
    /// Where the next line goes.
    end: u64,
    _lock: DiskFile,
}

impl Log {
    fn open(system: &FileSystem, path: &Path) -> Result<Self, TrainError> {
        system.create_folders(&path.join("checkpoints"))?;
        let lock = system.open(&path.join("run.lock"))?;
        if !lock.try_lock()? {
            return Err(TrainError::Locked { path: path.to_owned() });
        }
        let file = system.open(&path.join("log.jsonl"))?;
        let end = file.size()?;
        system.sync_folder(path)?;
        Ok(Self { file, end, _lock: lock })
    }

    fn check(&self, expected: u64) -> Result<(), TrainError> {
        let (path, got) = (self.file.path().to_owned(), self.file.size()?);
        // Making it longer would fill it with zeros.
        if got >= expected {
            return Ok(());
        }
        let problem = format!(
            "expected {expected} bytes, as the checkpoint needs, got {got}; put the log back, or choose another folder"
        );
        Err(TrainError::Unusable { path, problem })
    }

    fn cut(&mut self, bytes: u64) -> Result<(), TrainError> {
        self.file.resize(bytes)?;
        self.end = bytes;
        Ok(())
    }
}

/// Result of resuming a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Step of the checkpoint; `None` when there was none and the run starts.
    pub step: Option<u64>,
    /// Damaged checkpoints that were ignored, newest first.
    pub rejected: Vec<Rejected>,
}

/// A damaged checkpoint that was ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its folder.
    pub path: PathBuf,
    /// The problem.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// Kinds of folders that may hold the checkpoint of a step, most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    InPlace,
    Partial,
    Old,
}

impl Kind {
    const ALL: [(Self, &str); 3] = [(Self::InPlace, ""), (Self::Partial, ".partial-"), (Self::Old, ".old-")];
}

/// A folder that may hold the checkpoint of a step.
#[derive(Debug)]
struct Found {
    step: u64,
    kind: Kind,
    path: PathBuf,
}

/// Checkpoints that are retained.
const KEEP: usize = 2;

impl RunFolder {
    /// Opens or makes the folder, and locks it.
    ///
    /// # Errors
    /// [`TrainError::Locked`] when another process holds it; [`TrainError::File`] when it cannot be
    /// written.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        Self::open_on(&FileSystem::default(), path)
    }

    /// [`open`](Self::open) through another file layer than the real disk's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(system: &FileSystem, path: &Path) -> Result<Self, TrainError> {
        Self::open_in(Arc::new(Alone), system, path)
    }

    /// [`open_on`](Self::open_on) as one of several ranks, which all see the folder and make the same calls.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(group: Arc<dyn Group>, system: &FileSystem, path: &Path) -> Result<Self, TrainError> {
        let log = (group.rank() == 0).then(|| Log::open(system, path)).transpose();
        let log = agreed(group.as_ref(), log)?;
        Ok(Self { system: system.clone(), path: path.to_owned(), group, log })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file layer that it is written through.
    pub(crate) fn system(&self) -> &FileSystem {
        &self.system
    }

    /// Restores `trainer` and the log to the newest complete checkpoint; without one, the run starts.
    ///
    /// Finishes or removes what a killed process left half done. On an error, `trainer` is unchanged.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] when the checkpoint's settings, network, loss or data are not the trainer's;
    /// [`TrainError::Unusable`] when there are checkpoints but none is complete, or the log lacks lines;
    /// [`TrainError::File`] when a file fails.
    pub fn resume<O: Objective>(&mut self, trainer: &mut Trainer<O>) -> Result<Resumed, TrainError> {
        let mut rejected = Vec::new();
        let found = self.found_by_all()?;
        for it in &found {
            match checkpoint::read(&it.path, trainer) {
                Ok((state, saved)) => {
                    self.lead(|folder| {
                        folder.log_of_rank_0()?.check(state.log_bytes)?;
                        folder.settle(it, &found)?;
                        folder.log_of_rank_0()?.cut(state.log_bytes)
                    })?;
                    trainer.restore(saved)?;
                    return Ok(Resumed { step: Some(trainer.steps()), rejected });
                }
                Err(error @ TrainError::OtherRun { .. }) => return Err(error),
                // The process was killed while writing it; it never was a checkpoint.
                Err(_) if it.kind == Kind::Partial => {}
                Err(error) => rejected.push(Rejected { path: it.path.clone(), reason: in_full(&error) }),
            }
        }
        if let Some(newest) = rejected.into_iter().next() {
            let problem = format!(
                "no checkpoint is complete, the newest: {newest}; move the folder away to start anew"
            );
            return Err(TrainError::Unusable { path: self.path.join("checkpoints"), problem });
        }
        self.lead(|folder| {
            folder.remove(found.iter().map(|it| &it.path))?;
            folder.log_of_rank_0()?.cut(0)
        })?;
        Ok(Resumed { step: None, rejected: Vec::new() })
    }

    /// Appends one line of JSON to the log; other ranks than 0 leave that to it.
    ///
    /// # Errors
    /// [`TrainError::File`] when it cannot be written.
    pub fn log(&mut self, record: &serde_json::Value) -> Result<(), TrainError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let line = format!("{record}\n");
        log.file.write_at(log.end, line.as_bytes())?;
        log.end += line.len() as u64;
        Ok(())
    }

    /// Saves the trainer, verifies what was written, and removes all older checkpoints but one. All ranks call this
    /// together.
    ///
    /// An existing checkpoint that is complete and equal stays as it is.
    ///
    /// # Errors
    /// [`TrainError::File`] when a file cannot be written;
    /// [`TrainError::Unusable`] when it reads differently. Earlier checkpoints are intact then.
    pub fn save<O: Objective>(&mut self, trainer: &Trainer<O>) -> Result<PathBuf, TrainError> {
        let step = trainer.steps();
        let place = |kind| self.place(kind, step);
        let (folder, partial, old) = (place(Kind::InPlace), place(Kind::Partial), place(Kind::Old));
        let group = self.group.clone();
        self.lead(|it| {
            it.log_of_rank_0()?.file.sync()?;
            Ok(it.system.remove_folder(&partial)?)
        })?;
        let log_end = self.log.as_ref().map_or(0, |it| it.end);
        let written = checkpoint::write(&self.system, &partial, trainer, log_end)?;
        let before = checkpoint::verify(group.as_ref(), &folder);
        // Rank 0 knows the length of the log, and with it whether the two are equal.
        let equal = before.is_ok_and(|it| it == written);
        let (_, equal) = agree_on(group.as_ref(), Ok::<_, TrainError>(equal), |it| vec![(*it).into()])?;
        let equal = equal.first().is_some_and(|it| *it == [1]);
        if !equal {
            checkpoint::verify(group.as_ref(), &partial)?;
        }
        self.lead(|it| {
            if equal {
                it.system.remove_folder(&partial)?;
            } else {
                if folder.exists() {
                    it.system.remove_folder(&old)?;
                    it.system.rename(&folder, &old)?;
                }
                it.system.rename(&partial, &folder)?;
            }
            // Newer ones may exist, damaged and ignored; older ones are counted without them.
            let found = it.found()?;
            let older = found.iter().filter(|it| it.kind == Kind::InPlace && it.step < step).skip(KEEP - 1);
            it.remove(older.map(|it| &it.path).chain([&old]))
        })?;
        Ok(folder)
    }

    /// Does something on rank 0, while the others wait.
    fn lead(&mut self, job: impl FnOnce(&mut Self) -> Result<(), TrainError>) -> Result<(), TrainError> {
        let group = self.group.clone();
        agreed(group.as_ref(), if self.log.is_some() { job(self) } else { Ok(()) })
    }

    fn log_of_rank_0(&mut self) -> Result<&mut Log, TrainError> {
        let path = &self.path;
        self.log.as_mut().ok_or_else(|| TrainError::Locked { path: path.clone() })
    }

    /// The checkpoints that rank 0 finds, newest first. Several ranks learn as many of them as fit into a message.
    fn found_by_all(&self) -> Result<Vec<Found>, TrainError> {
        const EACH: usize = 9;
        let found = if self.log.is_some() { self.found() } else { Ok(Vec::new()) };
        if self.group.size() == 1 {
            return found;
        }
        let say = |all: &Vec<Found>| {
            let each = |it: &Found| [&it.step.to_le_bytes()[..], &[it.kind as u8]].concat();
            all.iter().take(MAX_PAYLOAD / EACH).flat_map(each).collect()
        };
        let (_, heard) = agree_on(self.group.as_ref(), found, say)?;
        let read = |bytes: &[u8]| {
            let step = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
            let kind = Kind::ALL.into_iter().map(|it| it.0).find(|it| Some(&(*it as u8)) == bytes.last())?;
            Some(Found { step, kind, path: self.place(kind, step) })
        };
        Ok(heard.first().map_or(Vec::new(), |it| it.chunks(EACH).filter_map(read).collect()))
    }

    /// All folders that may be a checkpoint: newest step first, and within a step the most trusted kind.
    fn found(&self) -> Result<Vec<Found>, TrainError> {
        let folder = self.path.join("checkpoints");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(FileError::io("read", &folder))? {
            let path = entry.map_err(FileError::io("read", &folder))?.path();
            let name = path.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            let step = |prefix| name.strip_prefix(prefix)?.strip_prefix("step-")?.parse().ok();
            let of_kind = |(kind, prefix)| Some(Found { step: step(prefix)?, kind, path: path.clone() });
            found.extend(Kind::ALL.into_iter().find_map(of_kind));
        }
        found.sort_by_key(|it| (std::cmp::Reverse(it.step), it.kind));
        Ok(found)
    }

    fn place(&self, kind: Kind, step: u64) -> PathBuf {
        let prefix = Kind::ALL.into_iter().find(|it| it.0 == kind).map_or("", |it| it.1);
        self.path.join("checkpoints").join(format!("{prefix}step-{step:010}"))
    }

    /// Moves a complete checkpoint into place, and removes what else a kill left behind.
    fn settle(&self, whole: &Found, found: &[Found]) -> Result<(), TrainError> {
        if whole.kind != Kind::InPlace {
            let place = self.place(Kind::InPlace, whole.step);
            // It is damaged, or it would have been chosen.
            self.system.remove_folder(&place)?;
            self.system.rename(&whole.path, &place)?;
        }
        let left = found.iter().filter(|it| it.kind != Kind::InPlace && it.path != whole.path);
        self.remove(left.map(|it| &it.path))
    }

    fn remove<'a>(&self, mut folders: impl Iterator<Item = &'a PathBuf>) -> Result<(), TrainError> {
        Ok(folders.try_for_each(|it| self.system.remove_folder(it))?)
    }
}

/// The lines of a run's log.
///
/// # Errors
/// [`TrainError::File`] or [`TrainError::Unusable`] when it cannot be read, or a line is not JSON.
pub fn read_log(folder: &Path) -> Result<Vec<serde_json::Value>, TrainError> {
    let path = folder.join("log.jsonl");
    let text = fs::read_to_string(&path).map_err(FileError::io("read", &path))?;
    let parse = |(number, line)| {
        serde_json::from_str(line).map_err(|error| {
            let problem = format!("line {}: expected JSON, got {error}", number + 1);
            TrainError::Unusable { path: path.clone(), problem }
        })
    };
    text.lines().enumerate().map(parse).collect()
}
