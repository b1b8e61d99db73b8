//! Locks and logs: a slot is both, for every so manieth batch.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::job::ArchiveJob;
use crate::npz::durable::{create_folder, folder_of, sync_folder};
use crate::npz::error::NpzError;
use crate::npz::positioned::write_all_at;

/// Slots of a large job, which bounds how many processes work at the same time.
const MAX_SLOTS: usize = 256;

/// Bytes of a log that are read at most; those of a whole job are far fewer.
const MAX_LOG_BYTES: u64 = 1 << 26;

/// The slots of a job: batch `b` belongs to slot `b mod count`.
#[derive(Debug)]
pub(super) struct Slots {
    folder: PathBuf,
    log: Log,
}

/// How lines of a job are written and checked.
#[derive(Debug, Clone)]
struct Log {
    /// Lines of another job are no lines.
    id: String,
    num_batches: usize,
    count: usize,
}

/// A slot that this process alone may write, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    file: File,
    path: PathBuf,
    log: Log,
    finished: Vec<(usize, u32)>,
    /// Bytes of whole lines.
    whole: u64,
}

impl Slots {
    pub(super) fn new(folder: PathBuf, job: &ArchiveJob) -> Result<Self, NpzError> {
        create_folder(&folder)?;
        let num_batches = job.num_batches();
        Ok(Self { folder, log: Log { id: job.id(), num_batches, count: num_batches.min(MAX_SLOTS) } })
    }

    pub(super) fn count(&self) -> usize {
        self.log.count
    }

    /// The slot of a batch.
    pub(super) fn of(&self, batch: usize) -> usize {
        batch % self.log.count
    }

    /// Takes a slot, unless another process has it.
    pub(super) fn claim(&self, number: usize) -> Result<Option<Slot>, NpzError> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(NpzError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(NpzError::io("lock", &path)(error)),
        }
        let (finished, whole) = self.log.read(&file, number).map_err(NpzError::io("read", &path))?;
        Ok(Some(Slot { file, path, log: self.log.clone(), finished, whole }))
    }

    /// What a slot says is finished, whoever has it.
    pub(super) fn read(&self, number: usize) -> Result<Vec<(usize, u32)>, NpzError> {
        let path = self.path(number);
        let lines = fs::File::open(&path).and_then(|file| self.log.read(&file, number));
        match lines {
            Ok((finished, _)) => Ok(finished),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(NpzError::io("read", &path)(error)),
        }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number:03}"))
    }
}

impl Slot {
    /// Batches and the checksums of their pixels.
    pub(super) fn finished(&self) -> &[(usize, u32)] {
        &self.finished
    }

    /// Says that the pixels of a batch are on the disk.
    pub(super) fn append(&mut self, batch: usize, crc: u32) -> Result<(), NpzError> {
        let line = self.log.line(batch, crc);
        let write = || {
            // A line that was torn by a kill goes.
            self.file.set_len(self.whole)?;
            write_all_at(&self.file, line.as_bytes(), self.whole)?;
            self.file.sync_all()
        };
        write().map_err(NpzError::io("write", &self.path))?;
        if self.whole == 0 {
            sync_folder(folder_of(&self.path))?;
        }
        self.whole += line.len() as u64;
        self.finished.push((batch, crc));
        Ok(())
    }
}

impl Log {
    fn line(&self, batch: usize, crc: u32) -> String {
        let check = crc32fast::hash(format!("{} {batch} {crc:08x}", self.id).as_bytes());
        format!("{batch} {crc:08x} {check:08x}\n")
    }

    /// The whole lines of a file, and how many bytes they are.
    fn read(&self, file: &File, slot: usize) -> io::Result<(Vec<(usize, u32)>, u64)> {
        let mut bytes = Vec::new();
        file.take(MAX_LOG_BYTES).read_to_end(&mut bytes)?;
        Ok(self.parse(&bytes, slot))
    }

    fn parse(&self, bytes: &[u8], slot: usize) -> (Vec<(usize, u32)>, u64) {
        let mut finished = Vec::new();
        let mut whole = 0;
        for line in bytes.split_inclusive(|it| *it == b'\n') {
            let Some((batch, crc)) = self.parse_line(line).filter(|(batch, _)| batch % self.count == slot)
            else {
                break;
            };
            finished.push((batch, crc));
            whole += line.len() as u64;
        }
        (finished, whole)
    }

    fn parse_line(&self, line: &[u8]) -> Option<(usize, u32)> {
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let batch = words.next()?.parse().ok().filter(|it| *it < self.num_batches)?;
        let crc = u32::from_str_radix(words.next()?, 16).ok()?;
        (self.line(batch, crc).as_bytes() == line).then_some((batch, crc))
    }
}

/// Takes the lock of a file that is made if it is missing; waits for whoever has it.
pub(super) fn lock(path: &Path) -> Result<File, NpzError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(NpzError::io("open", path))?;
    file.lock().map_err(NpzError::io("lock", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(count: usize) -> ArchiveJob {
        ArchiveJob { count, height: 1, width: 1, batch: 1, protocol: serde_json::json!({}) }
    }

    #[test]
    fn a_slot_is_one_process_s_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots::new(folder.path().join("slots"), &job(600)).unwrap();
        assert_eq!((slots.count(), slots.of(300)), (256, 44));
        let mut slot = slots.claim(44).unwrap().unwrap();
        assert!(slots.claim(44).unwrap().is_none());
        slot.append(300, 0xabc).unwrap();
        slot.append(44, 7).unwrap();
        assert_eq!(slots.read(44).unwrap(), [(300, 0xabc), (44, 7)]);
        drop(slot);
        assert_eq!(slots.claim(44).unwrap().unwrap().finished(), [(300, 0xabc), (44, 7)]);
        assert_eq!(slots.read(45).unwrap(), []);
    }

    #[test]
    fn torn_and_foreign_lines_are_dropped_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots::new(folder.path().join("slots"), &job(2)).unwrap();
        let log = &slots.log;
        let whole = log.line(1, 5);
        for cut in 0..whole.len() {
            assert_eq!(log.parse(&whole.as_bytes()[..cut], 1), (vec![], 0));
        }
        let other = Slots::new(folder.path().join("others"), &job(3)).unwrap().log.line(1, 5);
        for tail in ["", "1 0000", "\n", "1 00000005 00000000\n", &other, "9999 0 0\n", "\u{fffd}"] {
            let path = slots.path(1);
            fs::write(&path, format!("{whole}{tail}")).unwrap();
            let mut slot = slots.claim(1).unwrap().unwrap();
            assert_eq!(slot.finished(), [(1, 5)], "{tail:?}");
            slot.append(1, 5).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), whole.repeat(2));
        }
        // A line in the slot of others is not theirs.
        assert_eq!(log.parse(whole.as_bytes(), 0), (vec![], 0));
    }
}
