//! From a work folder whose batches are all finished to the archive.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use serde_json::json;

use super::job::ArchiveJob;
use super::slot::lock;
use super::{ImageArchive, Mark};
use crate::npz::durable::{Existing, folder_of, sync_folder, write_file};
use crate::npz::error::NpzError;
use crate::npz::header::{Dtype, NpyHeader};
use crate::npz::positioned::{read_exact_at, write_all_at};
use crate::npz::zip_layout::{ArrayEntry, directory};

/// Bytes of pixels that are read at once, where they must be.
const READ_AT_ONCE: usize = 1 << 20;

/// Where the archive of a job is, will be, and is being made.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The finished archive.
    archive: PathBuf,
    /// Its description.
    manifest: PathBuf,
    /// The folder of work.
    pub(super) work: PathBuf,
    job: ArchiveJob,
}

/// What is known of the finished archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    /// It is this job's.
    Finished,
}

impl Place {
    pub(super) fn new(archive: &Path, job: &ArchiveJob) -> Result<Self, NpzError> {
        let beside = |suffix: &str| {
            let mut name = archive.file_name()?.to_owned();
            name.push(suffix);
            Some(archive.with_file_name(name))
        };
        let (Some(manifest), Some(work)) = (beside(".json"), beside(".work")) else {
            return Err(NpzError::NotAFile { path: archive.to_owned() });
        };
        Ok(Self { archive: archive.to_owned(), manifest, work, job: job.clone() })
    }

    /// Looks for the finished archive.
    ///
    /// The description is renamed into its place before the archive, so an archive without one is foreign.
    pub(super) fn state(&self) -> Result<State, NpzError> {
        let there = self.archive.symlink_metadata().is_ok();
        let manifest = match fs::read(&self.manifest) {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let exists = || NpzError::Exists { path: self.archive.clone() };
                return if there { Err(exists()) } else { Ok(State::Absent) };
            }
            Err(error) => return Err(NpzError::io("read", &self.manifest)(error)),
        };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        self.job.compare(&self.manifest, manifest["job"].to_string().as_bytes())?;
        Ok(if there { State::Finished } else { State::Absent })
    }

    /// Clears up after the archive is finished. What stays behind goes at the next opening.
    pub(super) fn remove_work_folder(&self) {
        fs::remove_dir_all(&self.work).ok();
    }
}

impl ImageArchive {
    /// Makes the archive of the images and their labels, and removes the work folder.
    ///
    /// The archive is zip64, stored: `arr_0.npy` has the images, `arr_1.npy` the labels (int64), as the
    /// sampling scripts of guided diffusion write them. Its description, with the job and checksums, is
    /// written beside it with `.json` after its name. Several processes may call this; one of them does it.
    ///
    /// # Errors
    ///
    /// [`NpzError::Invalid`] for another number of labels than of images, and where batches are missing;
    /// [`NpzError::Exists`] if another file has come into the archive's place; [`NpzError::Io`].
    pub fn finish(mut self, labels: &[i64]) -> Result<(), NpzError> {
        if labels.len() != self.job.count {
            let (expected, got) = (self.job.count.to_string(), labels.len().to_string());
            return Err(NpzError::Invalid { what: "number of labels", expected, got });
        }
        let place = self.place.clone();
        match self.make(labels) {
            // Another process may have finished and cleared up meanwhile.
            Err(error) if error.is_not_found() && place.state()? == State::Finished => {}
            other => other?,
        }
        place.remove_work_folder();
        Ok(())
    }

    fn make(&mut self, labels: &[i64]) -> Result<(), NpzError> {
        let _alone = lock(&self.place.work.join("finish"))?;
        if self.place.state()? == State::Finished {
            return Ok(());
        }
        self.refresh()?;
        let mut pixels = self.pixels.clone();
        pixels.data_crc = self.pixels_crc()?;
        let bytes: Vec<u8> = labels.iter().flat_map(|it| it.to_le_bytes()).collect();
        let header = NpyHeader { dtype: Dtype::I64, shape: vec![labels.len()], fortran_order: false };
        let too_large = || NpzError::Invalid {
            what: "job",
            expected: "a size that fits in a file".to_owned(),
            got: format!("{} images", self.job.count),
        };
        let mut labels = ArrayEntry::new("arr_1", &header, pixels.end()).ok_or_else(too_large)?;
        labels.data_crc = crc32fast::hash(&bytes);
        let (offset, end) = (labels.offset, labels.end());
        let entries = [pixels, labels];
        let [pixels, labels] = &entries;
        let tail = [labels.front(), bytes, directory(&entries, end)].concat();

        let data = self.place.work.join("data");
        let write = || {
            write_all_at(&self.data, &pixels.front(), 0)?;
            write_all_at(&self.data, &tail, offset)?;
            self.data.set_len(offset + tail.len() as u64)?;
            self.data.sync_all()
        };
        write().map_err(NpzError::io("write", &data))?;
        let manifest = self.place.work.join("manifest.json");
        let text = self.manifest(&entries, offset + tail.len() as u64);
        write_file(&manifest, Existing::Replace, |file| file.write_all(text.as_bytes()))?;
        for (from, to) in [(&manifest, &self.place.manifest), (&data, &self.place.archive)] {
            fs::rename(from, to).map_err(NpzError::io("write", to))?;
            sync_folder(folder_of(to))?;
        }
        Ok(())
    }

    /// Checksum of all pixels, from those of the batches.
    fn pixels_crc(&self) -> Result<u32, NpzError> {
        let mut all = Hasher::new();
        for (batch, mark) in self.marks.iter().enumerate() {
            let images = self.job.images_of(batch);
            let bytes = images.len() as u64 * self.job.image_bytes() as u64;
            let crc = match *mark {
                Mark::Finished(crc) => crc,
                Mark::Disputed => {
                    let offset =
                        self.pixels.data_start() + images.start as u64 * self.job.image_bytes() as u64;
                    crc_of(&self.data, offset, bytes).map_err(NpzError::io("read", &self.place.work))?
                }
                Mark::Missing => {
                    let missing = self.job.count - self.finished_images();
                    let (expected, got) = (format!("{} images", self.job.count), format!("{missing} fewer"));
                    return Err(NpzError::Invalid { what: "archive to finish", expected, got });
                }
            };
            all.combine(&Hasher::new_with_initial_len(crc, bytes));
        }
        Ok(all.finalize())
    }

    fn manifest(&self, entries: &[ArrayEntry; 2], bytes: u64) -> String {
        let [images, labels] = entries.each_ref().map(|it| format!("{:08x}", it.crc()));
        let text = json!({
            "job": self.job,
            "archive": {
                "bytes": bytes,
                "images": { "array": "arr_0", "dtype": "uint8", "shape": self.job.images_header().shape, "crc32": images },
                "labels": { "array": "arr_1", "dtype": "int64", "shape": [self.job.count], "crc32": labels },
            },
        });
        format!("{text:#}\n")
    }
}

fn crc_of(file: &File, mut offset: u64, mut bytes: u64) -> std::io::Result<u32> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; READ_AT_ONCE];
    while bytes > 0 {
        let now = bytes.min(READ_AT_ONCE as u64) as usize;
        read_exact_at(file, &mut buffer[..now], offset)?;
        hasher.update(&buffer[..now]);
        offset += now as u64;
        bytes -= now as u64;
    }
    Ok(hasher.finalize())
}
