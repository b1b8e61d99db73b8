//! An archive of images that many processes fill, and that a kill at any moment cannot damage.
//!
//! Until the archive `images.npz` is finished, its work folder `images.npz.work` is beside it:
//!
//! ```text
//! lock          held by the process that begins or finishes
//! job.json      the job; another one is refused
//! data          the archive itself, its room taken at the start; every image has its place in it
//! batches/N     locked by the process that makes batch N; not empty once its images are on the disk
//! ```
//!
//! Locks end with their process, however that ends. Finishing reads the images once for their checksum, writes
//! what comes before and after them, and renames the file.

use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Value, json};
use zip::ZipWriter;

use crate::file_system::{DiskFile, FileSystem, WRITING};
use crate::limits::MAX_DESCRIPTION_BYTES;
use crate::npz::header::NpyHeader;
use crate::npz::job::{ArchiveJob, Shard};
use crate::npz::npz_file::start_array;
use crate::source::Source;
use crate::zip::entries;
use crate::{FileError, read_file};

/// An archive that is not finished: N images of H x W x 3 bytes, and their labels.
#[derive(Debug)]
pub struct ImageArchive {
    place: Place,
    job: ArchiveJob,
    /// Where the pixels are in the data file, and will be in the archive.
    pixels: Range<u64>,
    data: DiskFile,
    finished: Vec<bool>,
}

/// The next task of a process.
#[derive(Debug)]
pub enum Next {
    /// Make these images and give them to [`ImageArchive::write`].
    Batch(Claim),
    /// Ask again in a while: other processes have all that is left, and it becomes free if one of them ends.
    Wait,
    /// All batches are finished: call [`ImageArchive::finish`].
    Filled,
    /// Another process has finished the archive.
    Complete,
}

/// A batch that no other process gets until this is given to [`ImageArchive::write`] or dropped.
#[derive(Debug)]
pub struct Claim {
    batch: usize,
    images: Range<usize>,
    mark: DiskFile,
}

impl Claim {
    /// Positions of the images in the archive.
    #[must_use]
    pub fn images(&self) -> Range<usize> {
        self.images.clone()
    }
}

impl ImageArchive {
    /// Begins the archive at `path`, or resumes it; `None` if it is complete.
    ///
    /// Any number of processes may do so at the same time.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for a job without images, or too large; [`FileError::Unusable`] for existing files
    /// that are not this job's; [`FileError::Io`], also where the disk has no room for all images.
    pub fn open(path: impl AsRef<Path>, job: &ArchiveJob) -> Result<Option<Self>, FileError> {
        Self::open_on(&FileSystem::default(), path.as_ref(), job)
    }

    /// [`open`](Self::open) through another file layer than the real disk's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(system: &FileSystem, path: &Path, job: &ArchiveJob) -> Result<Option<Self>, FileError> {
        job.check()?;
        let place = Place::new(system, path)?;
        if place.is_finished(job)? {
            place.remove_work_folder();
            return Ok(None);
        }
        match Self::begin(place.clone(), job) {
            // Another process may have finished and cleared up meanwhile.
            Err(error) => match place.is_finished(job) {
                Ok(true) => {
                    place.remove_work_folder();
                    Ok(None)
                }
                _ => Err(error),
            },
            Ok(archive) => Ok(Some(archive)),
        }
    }

    fn begin(place: Place, job: &ArchiveJob) -> Result<Self, FileError> {
        let system = &place.system;
        system.create_folder(&place.work)?;
        place.refuse_foreign_work()?;
        let _alone = place.lock()?;
        let description = place.work.join("job.json");
        if !description.exists() {
            system.atomic_write(&description, |file| file.write_all(job.to_json().as_bytes()))?;
        }
        job.compare(&place.work, &read_json(&description)?)?;
        system.create_folder(&place.work.join("batches"))?;
        let pixels = pixels(job).map_err(FileError::io("write", &place.archive))?;
        let mut data = system.open(&place.work.join("data"))?;
        // Its name is on the disk before any mark: else a power cut could leave marks beside an empty file.
        system.sync_folder(&place.work)?;
        data.allocate(pixels.end)?;
        let finished = vec![false; job.num_batches()];
        let mut archive = Self { job: job.clone(), pixels, data, finished, place };
        archive.refresh()?;
        Ok(archive)
    }

    /// Claims a batch that is neither finished nor claimed: the shard's own first, then those of others.
    ///
    /// # Errors
    /// [`FileError::Io`], also where the file system has no locks.
    pub fn next(&mut self, shard: Shard) -> Result<Next, FileError> {
        let next = self.find(shard);
        // When another process finishes, the work folder is removed: there is nothing, or nothing in it.
        let may_be_gone = match &next {
            Ok(Next::Batch(_)) => true,
            Ok(_) => false,
            Err(error) => error.is_missing_file(),
        };
        if !may_be_gone || !self.place.is_finished(&self.job)? {
            return next;
        }
        drop(next);
        self.place.remove_work_folder();
        Ok(Next::Complete)
    }

    fn find(&mut self, shard: Shard) -> Result<Next, FileError> {
        let mut waiting = false;
        for batch in shard.order(self.finished.len()) {
            if self.finished[batch] {
                continue;
            }
            let mark = self.place.system.open(&self.place.mark(batch))?;
            if !mark.try_lock()? {
                waiting = true;
            } else if mark.size()? > 0 {
                self.finished[batch] = true;
            } else {
                return Ok(Next::Batch(Claim { batch, images: self.job.images_of(batch), mark }));
            }
        }
        Ok(if waiting { Next::Wait } else { Next::Filled })
    }

    /// Writes the images of a batch to the disk, and then its mark.
    ///
    /// # Shapes
    ///
    /// `pixels`: as many images as the claim has, each H rows of W times red, green, blue.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for another number of bytes; [`FileError::Io`]. The batch then counts as missing.
    pub fn write(&mut self, claim: Claim, pixels: &[u8]) -> Result<(), FileError> {
        let Claim { batch, images, mut mark } = claim;
        let expected = images.len() * self.job.image_bytes();
        if pixels.len() != expected {
            let expected = format!("{expected} bytes for {} images", images.len());
            return Err(FileError::invalid("pixels of a batch", expected, pixels.len()));
        }
        let offset = self.pixels.start + images.start as u64 * self.job.image_bytes() as u64;
        self.data.write_at(offset, pixels)?;
        self.data.sync()?;
        mark.write_at(0, b"finished\n")?;
        mark.sync()?;
        self.finished[batch] = true;
        Ok(())
    }

    /// Finds the batches that other processes have finished meanwhile.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn refresh(&mut self) -> Result<(), FileError> {
        for batch in 0..self.finished.len() {
            self.finished[batch] |= fs::metadata(self.place.mark(batch)).is_ok_and(|it| it.len() > 0);
        }
        Ok(())
    }

    /// Number of images that are finished, by this process or (at the last refresh) another.
    #[must_use]
    pub fn finished_images(&self) -> usize {
        let finished = self.finished.iter().enumerate().filter(|(_, finished)| **finished);
        finished.map(|(batch, _)| self.job.images_of(batch).len()).sum()
    }

    /// Makes the archive of the images and their labels, and removes the work folder.
    ///
    /// The archive is a stored zip: `arr_0.npy` has the images, `arr_1.npy` the labels (int64), as the sampling
    /// scripts of guided diffusion write them. Its description, with the job and checksums, is written beside it
    /// with `.json` after its name. Several processes may call this; one of them does it.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for another number of labels than of images, and where batches are missing;
    /// [`FileError::Unusable`] if another file has come into the archive's place; [`FileError::Io`].
    pub fn finish(mut self, labels: &[i64]) -> Result<(), FileError> {
        if labels.len() != self.job.count {
            return Err(FileError::invalid("number of labels", self.job.count.to_string(), labels.len()));
        }
        match self.make(labels) {
            // Another process may have finished and cleared up meanwhile.
            Err(error) if error.is_missing_file() && self.place.is_finished(&self.job)? => {}
            other => other?,
        }
        self.place.remove_work_folder();
        Ok(())
    }

    fn make(&mut self, labels: &[i64]) -> Result<(), FileError> {
        let _alone = self.place.lock()?;
        if self.place.is_finished(&self.job)? {
            return Ok(());
        }
        self.refresh()?;
        let missing = self.job.count - self.finished_images();
        if missing > 0 {
            let (expected, got) = (format!("{} images", self.job.count), format!("{missing} fewer"));
            return Err(FileError::invalid("archive to finish", expected, got));
        }
        let data = self.data.path().to_owned();
        let Around { front, tail, .. } = self.around(labels).map_err(FileError::io("read", &data))?;
        self.data.write_at(0, &front)?;
        self.data.write_at(self.pixels.end, &tail)?;
        self.data.resize(self.pixels.end + tail.len() as u64)?;
        self.data.sync()?;
        let description = format!("{:#}\n", self.description(&data)?);
        let system = &self.place.system;
        // In the work folder first, which goes with whatever a kill leaves in it.
        let written = self.place.work.join("description.json");
        system.atomic_write(&written, |file| file.write_all(description.as_bytes()))?;
        // Before the archive: one without a description is somebody else's.
        system.rename(&written, &self.place.description)?;
        system.rename(&data, &self.place.archive)
    }

    /// The archive's bytes before and after the pixels.
    fn around(&self, labels: &[i64]) -> io::Result<Around> {
        let mut data = File::open(self.data.path())?;
        data.seek(SeekFrom::Start(self.pixels.start))?;
        let mut pixels = BufReader::with_capacity(1 << 20, data).take(self.pixels.end - self.pixels.start);
        let mut zip = ZipWriter::new(Around::new(self.pixels.clone()));
        start_array(&mut zip, "arr_0", &self.job.images_header())?;
        io::copy(&mut pixels, &mut zip)?;
        let header = NpyHeader { dtype: DType::I64, shape: vec![labels.len()], fortran_order: false };
        start_array(&mut zip, "arr_1", &header)?;
        zip.write_all(&labels.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>())?;
        Ok(zip.finish()?)
    }

    fn description(&self, archive: &Path) -> Result<Value, FileError> {
        let source = Source::open(archive)?;
        let entries = entries(&source)?;
        let crc = |name: &str| entries.get(name).and_then(|it| it.crc).map(|crc| format!("{crc:08x}"));
        let shape = self.job.images_header().shape;
        Ok(json!({
            "job": self.job,
            "archive": {
                "bytes": source.len(),
                "images": { "array": "arr_0", "dtype": "uint8", "shape": shape, "crc32": crc("arr_0.npy") },
                "labels": {
                    "array": "arr_1", "dtype": "int64", "shape": [self.job.count], "crc32": crc("arr_1.npy"),
                },
            },
        }))
    }
}

/// Where the archive of a job will be, and is being made.
#[derive(Debug, Clone)]
struct Place {
    system: FileSystem,
    archive: PathBuf,
    description: PathBuf,
    work: PathBuf,
}

impl Place {
    fn new(system: &FileSystem, archive: &Path) -> Result<Self, FileError> {
        let Some(name) = archive.file_name() else {
            return Err(FileError::unusable(archive, "expected the path of a file"));
        };
        let beside = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            archive.with_file_name(name)
        };
        let (description, work) = (beside(".json"), beside(".work"));
        Ok(Self { system: system.clone(), archive: archive.to_owned(), description, work })
    }

    /// Whether the archive is there, and this job's.
    fn is_finished(&self, job: &ArchiveJob) -> Result<bool, FileError> {
        let exists = self.archive.symlink_metadata().is_ok();
        match read_json(&self.description) {
            Ok(description) => job.compare(&self.description, &description["job"]).map(|()| exists),
            Err(error) if !error.is_missing_file() => Err(error),
            Err(_) if exists => Err(foreign(&self.archive)),
            Err(_) => Ok(false),
        }
    }

    /// Waits for the lock of beginning and finishing.
    fn lock(&self) -> Result<DiskFile, FileError> {
        let lock = self.system.open(&self.work.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Refuses a work folder of files that no job has begun.
    fn refuse_foreign_work(&self) -> Result<(), FileError> {
        let entries = fs::read_dir(&self.work).map_err(FileError::io("read", &self.work))?;
        let names = entries.filter_map(Result::ok).map(|it| it.file_name().to_string_lossy().into_owned());
        let ours = |name: &String| name == "lock" || name == "job.json" || name.starts_with(WRITING);
        if names.into_iter().any(|it| !ours(&it)) && !self.work.join("job.json").exists() {
            return Err(foreign(&self.work));
        }
        Ok(())
    }

    /// Clears up after the archive is finished; the next opening removes what is left.
    fn remove_work_folder(&self) {
        self.system.remove_folder(&self.work).ok();
    }

    fn mark(&self, batch: usize) -> PathBuf {
        self.work.join("batches").join(batch.to_string())
    }
}

fn foreign(path: &Path) -> FileError {
    let problem =
        "it exists already, and nothing here says how it was made; choose another place, or remove it";
    FileError::unusable(path, problem)
}

/// A JSON file; one that cannot be parsed is null.
fn read_json(path: &Path) -> Result<Value, FileError> {
    Ok(serde_json::from_slice(&read_file(path, MAX_DESCRIPTION_BYTES)?).unwrap_or_default())
}

/// Where the pixels of a job are in its archive.
fn pixels(job: &ArchiveJob) -> io::Result<Range<u64>> {
    let header = job.images_header();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    start_array(&mut zip, "arr_0", &header)?;
    let start = zip.get_ref().map_or(0, Cursor::position);
    Ok(start..start + header.data_bytes().unwrap_or(0))
}

/// The bytes of an archive but its pixels, which are in the file already.
#[derive(Debug)]
struct Around {
    pixels: Range<u64>,
    front: Vec<u8>,
    tail: Vec<u8>,
    position: u64,
}

impl Around {
    fn new(pixels: Range<u64>) -> Self {
        Self { pixels, front: Vec::new(), tail: Vec::new(), position: 0 }
    }
}

impl Write for Around {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (at, Range { start, end }) = (self.position, self.pixels.clone());
        let (part, from, room) = match at {
            _ if at < start => (Some(&mut self.front), at, start - at),
            _ if at < end => (None, at, end - at),
            _ => (Some(&mut self.tail), at - end, u64::MAX),
        };
        let now = room.min(bytes.len() as u64) as usize;
        if let Some(part) = part {
            let mut part = Cursor::new(part);
            part.set_position(from);
            part.write_all(&bytes[..now])?;
        }
        self.position += now as u64;
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Around {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.pixels.end + self.tail.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
