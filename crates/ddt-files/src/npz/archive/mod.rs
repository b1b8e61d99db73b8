//! An archive of images that many processes fill, and that any of them may leave at any moment.
//!
//! Beside the archive `images.npz` lies a work folder `images.npz.work` until it is finished:
//!
//! ```text
//! job.json      what is to be made; another job is refused
//! data          the archive itself, its room taken at the start; every image has its place in it
//! slots/N       the batches b with b mod 256 = N that are finished, a checksummed line each
//! finish        locked by the process that finishes
//! ```
//!
//! Who paints a batch holds the lock of its slot, which ends with the process however that ends.
//! Pixels are on the disk before the line that says so. A checksum is kept for each batch, so that finishing
//! combines checksums instead of reading the pixels again: it writes what comes before and after them and
//! renames the file.

mod finish;
mod job;
mod shard;
mod slot;

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::path::Path;

pub use job::ArchiveJob;
pub use shard::Shard;

use crate::npz::durable::{Existing, allocate, create_folder, write_file};
use crate::npz::error::NpzError;
use crate::npz::positioned::write_all_at;
use crate::npz::zip_layout::ArrayEntry;
use finish::{Place, State};
use slot::{Slot, Slots};

/// An archive that is not finished: N images of H x W x 3 bytes, and their labels.
#[derive(Debug)]
pub struct ImageArchive {
    place: Place,
    job: ArchiveJob,
    /// The images as an entry of the archive.
    pixels: ArrayEntry,
    data: File,
    slots: Slots,
    marks: Vec<Mark>,
}

/// What is known of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Missing,
    /// With the checksum of its pixels.
    Finished(u32),
    /// Finished by two processes that disagree, which happens only where locks do not work.
    Disputed,
}

/// What a process is to do next.
#[derive(Debug)]
pub enum Next {
    /// Paint these images and give them to [`ImageArchive::write`].
    Batch(Claim),
    /// Ask again in a while: all that is left is with other processes, and falls free if one of them ends.
    Wait,
    /// All batches are finished: call [`ImageArchive::finish`].
    Filled,
    /// Another process has finished the archive.
    Complete,
}

/// A batch that is this process's alone until this is given to [`ImageArchive::write`] or dropped.
#[derive(Debug)]
pub struct Claim {
    batch: usize,
    images: Range<usize>,
    slot: Slot,
}

impl Claim {
    /// Positions of the images in the archive.
    #[must_use]
    pub fn images(&self) -> Range<usize> {
        self.images.clone()
    }
}

impl ImageArchive {
    /// Begins the archive at `path`, or goes on with it; `None` if it is complete.
    ///
    /// Any number of processes may do so at the same time.
    ///
    /// # Errors
    ///
    /// [`NpzError::Invalid`] for a job without images, or too large; [`NpzError::OtherJob`] and
    /// [`NpzError::Exists`] for what is there already and is not this job's; [`NpzError::Io`], also where the
    /// disk has no room for all images.
    pub fn open(path: impl AsRef<Path>, job: &ArchiveJob) -> Result<Option<Self>, NpzError> {
        let pixels = job.check()?;
        let place = Place::new(path.as_ref(), job)?;
        if place.state()? == State::Finished {
            place.remove_work_folder();
            return Ok(None);
        }
        match Self::begin(place.clone(), job, pixels) {
            // Another process may have finished and cleared up meanwhile.
            Err(error) => match place.state() {
                Ok(State::Finished) => Ok(None),
                _ => Err(error),
            },
            Ok(archive) => Ok(Some(archive)),
        }
    }

    fn begin(place: Place, job: &ArchiveJob, pixels: ArrayEntry) -> Result<Self, NpzError> {
        create_folder(&place.work)?;
        let description = place.work.join("job.json");
        if !description.exists() {
            refuse_foreign(&place.work, &description)?;
            let written =
                write_file(&description, Existing::Keep, |file| file.write_all(job.to_json().as_bytes()));
            // Another process may have been first, which the comparison below sees.
            if let Err(error) = written
                && !description.exists()
            {
                return Err(error);
            }
        }
        let text = fs::read(&description).map_err(NpzError::io("read", &description))?;
        job.compare(&place.work, &text)?;
        let slots = Slots::new(place.work.join("slots"), job)?;
        let path = place.work.join("data");
        let data = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let data = data.map_err(NpzError::io("open", &path))?;
        allocate(&data, pixels.end()).map_err(NpzError::io("take room on the disk for", &path))?;
        let marks = vec![Mark::Missing; job.num_batches()];
        let mut archive = Self { place, job: job.clone(), pixels, data, slots, marks };
        archive.refresh()?;
        Ok(archive)
    }

    /// Finds a batch that nobody has finished or works on: the share's own first, then those of others.
    ///
    /// # Errors
    ///
    /// [`NpzError::Io`], also where the file system has no locks.
    pub fn next(&mut self, share: Shard) -> Result<Next, NpzError> {
        let next = self.find(share);
        // The work folder goes when another process finishes; then there is nothing, or nothing in it.
        let may_be_gone = match &next {
            Ok(Next::Batch(_)) => true,
            Ok(_) => false,
            Err(error) => error.is_not_found(),
        };
        if !may_be_gone || self.place.state()? != State::Finished {
            return next;
        }
        drop(next);
        self.place.remove_work_folder();
        Ok(Next::Complete)
    }

    fn find(&mut self, share: Shard) -> Result<Next, NpzError> {
        let mut busy = vec![false; self.slots.count()];
        let mut waiting = false;
        for batch in share.order(self.marks.len()) {
            if self.marks[batch] != Mark::Missing {
                continue;
            }
            let number = self.slots.of(batch);
            let slot = if busy[number] { None } else { self.slots.claim(number)? };
            let Some(slot) = slot else {
                busy[number] = true;
                waiting = true;
                continue;
            };
            self.mark(slot.finished());
            if self.marks[batch] == Mark::Missing {
                return Ok(Next::Batch(Claim { batch, images: self.job.images_of(batch), slot }));
            }
        }
        Ok(if waiting { Next::Wait } else { Next::Filled })
    }

    /// Puts the images of a batch into their place, and then on the disk.
    ///
    /// # Shapes
    ///
    /// `pixels`: as many images as the claim has, each H rows of W times red, green, blue.
    ///
    /// # Errors
    ///
    /// [`NpzError::Invalid`] for another number of bytes; [`NpzError::Io`]. The batch then counts as missing.
    pub fn write(&mut self, claim: Claim, pixels: &[u8]) -> Result<(), NpzError> {
        let Claim { batch, images, mut slot } = claim;
        let expected = images.len() * self.job.image_bytes();
        if pixels.len() != expected {
            return Err(NpzError::Invalid {
                what: "pixels of a batch",
                expected: format!("{expected} bytes for {} images", images.len()),
                got: pixels.len().to_string(),
            });
        }
        let path = self.place.work.join("data");
        let offset = self.pixels.data_start() + images.start as u64 * self.job.image_bytes() as u64;
        write_all_at(&self.data, pixels, offset).map_err(NpzError::io("write", &path))?;
        self.data.sync_data().map_err(NpzError::io("sync", &path))?;
        let crc = crc32fast::hash(pixels);
        slot.append(batch, crc)?;
        self.mark(&[(batch, crc)]);
        Ok(())
    }

    /// Looks which batches other processes have finished meanwhile.
    ///
    /// # Errors
    ///
    /// [`NpzError::Io`].
    pub fn refresh(&mut self) -> Result<(), NpzError> {
        for number in 0..self.slots.count() {
            let finished = self.slots.read(number)?;
            self.mark(&finished);
        }
        Ok(())
    }

    /// Number of images that are finished, by this process or (at the last look) another.
    #[must_use]
    pub fn finished_images(&self) -> usize {
        let finished = self.marks.iter().enumerate().filter(|(_, mark)| **mark != Mark::Missing);
        finished.map(|(batch, _)| self.job.images_of(batch).len()).sum()
    }

    fn mark(&mut self, finished: &[(usize, u32)]) {
        for &(batch, crc) in finished {
            let mark = &mut self.marks[batch];
            *mark = match *mark {
                Mark::Missing => Mark::Finished(crc),
                Mark::Finished(before) if before == crc => Mark::Finished(crc),
                Mark::Finished(_) | Mark::Disputed => Mark::Disputed,
            };
        }
    }
}

/// A work folder that has things in it, but was not made here, is somebody's.
fn refuse_foreign(work: &Path, description: &Path) -> Result<(), NpzError> {
    let entries = fs::read_dir(work).map_err(NpzError::io("read", work))?;
    let ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".writing-") || name == "job.json";
    let foreign = entries.filter_map(Result::ok).any(|it| !ours(&it.file_name()));
    if foreign && !description.exists() {
        return Err(NpzError::Exists { path: work.to_owned() });
    }
    Ok(())
}
