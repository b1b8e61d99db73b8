//! The images of an archive as PNG files, in a folder that holds nothing else.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use ddt::{
    OutputFile,
    files::{
        atomic_write,
        npz::{ArchiveJob, NpzFile},
    },
    picture::{Rgb8, encode_png},
};
use rayon::prelude::*;

use crate::terminal::{Interrupted, Terminal};

/// Pixels that are in memory at once, in bytes; one image at least.
const AT_ONCE: usize = 16 << 20;

/// Digits of a file's name at least, so that names sort as rows do.
const DIGITS: usize = 6;

/// A path with an ending after its name; the name of a folder may end in a slash.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A folder for the images of one job, row `i` in the file `i.png`.
///
/// The job's description is beside the folder from the beginning, so that another job is refused, and so is a folder
/// that holds anything else.
pub(super) struct PngFolder {
    path: PathBuf,
    description: OutputFile,
    job: String,
    count: usize,
}

impl PngFolder {
    /// Looks at the folder and writes nothing.
    pub(super) fn check(path: &Path, job: &ArchiveJob) -> Result<Self> {
        let shown = path.display();
        ensure!(path.file_name().is_some(), "expected a folder with a name, got {shown:?}");
        let description = OutputFile::new(&beside(path, ".json"), &[])?;
        let text = serde_json::to_string_pretty(&serde_json::json!({ "job": job }))? + "\n";
        let folder = Self { path: path.to_owned(), description, job: text, count: job.count };
        // Before the description, which another process of this job writes before it makes the folder.
        let foreign = folder.foreign()?;
        let described = folder.description.path().display();
        match (fs::read_to_string(folder.description.target()), foreign) {
            (Ok(found), _) if found != folder.job => bail!(
                "{described} describes other images; run the command that wrote them, name another folder, or remove \
                 {shown} and {described}"
            ),
            (Err(error), _) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot read {described}"))
            }
            (_, Some(name)) => {
                bail!("{shown} holds {name:?}, which is not of this data set; name a new or empty folder")
            }
            (Err(_), None) if folder.names()?.next().is_some() => {
                bail!("{shown} holds images of an unknown data set; name a new or empty folder")
            }
            _ => Ok(folder),
        }
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the description and makes the folder.
    pub(super) fn begin(&self) -> Result<()> {
        self.description.write(self.job.as_bytes())?;
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make the folder {}", self.path.display()))
    }

    /// Writes the images of an archive; those that are there already stay.
    ///
    /// Reading compares the archive's checksum.
    pub(super) fn write(&self, archive: &Path, terminal: &Terminal) -> Result<()> {
        let file = NpzFile::open(archive)?;
        let images = file.array("arr_0")?;
        images.expect_dtype(DType::U8)?;
        images.expect_shape(&[Some(self.count), None, None, Some(3)])?;
        let &[count, height, width, _] = images.shape() else {
            bail!("expected images, got {:?}", images.shape())
        };
        let _stepping = terminal.cancel().stepping();
        let mut meter = terminal.meter();
        let mut rows = images.rows(0..count)?;
        let image_bytes = rows.row_bytes().max(1);
        let mut buffer = vec![0; (AT_ONCE / image_bytes).clamp(1, count.max(1)) * image_bytes];
        let mut first = 0;
        while rows.left() > 0 {
            let read = rows.read(&mut buffer)?;
            let pixels = buffer[..read * image_bytes].par_chunks_exact(image_bytes).enumerate();
            pixels.try_for_each(|(at, pixels)| {
                let picture = Rgb8::new(width as u32, height as u32, pixels.to_vec())?;
                self.write_one(first + at, &encode_png(&picture, &[])?)
            })?;
            first += read;
            meter.show(first as f64 / count as f64, format_args!("{first} of {count} PNG files"));
            if terminal.cancel().is_requested() {
                return Err(Interrupted.into());
            }
        }
        Ok(())
    }

    fn write_one(&self, row: usize, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(self.name(row));
        match fs::read(&path) {
            Ok(found) => ensure!(
                found == bytes,
                "{} is not the image of this data set; name a new or empty folder",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                atomic_write(&path, |file| file.write_all(bytes))
                    .context("cannot write a picture; is the disk full?")?;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        Ok(())
    }

    /// Name of the file of a row.
    fn name(&self, row: usize) -> String {
        let digits = self.count.saturating_sub(1).to_string().len().max(DIGITS);
        format!("{row:0digits$}.png")
    }

    /// Names in the folder; none where there is no folder.
    fn names(&self) -> Result<impl Iterator<Item = String>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read the folder {}", self.path.display()));
            }
        };
        Ok(entries.into_iter().map(|it| it.file_name().to_string_lossy().into_owned()))
    }

    /// A name in the folder that no image of the job has; files that a killed process was writing do not count.
    fn foreign(&self) -> Result<Option<String>> {
        let is_row = |name: &str| {
            let row = name.strip_suffix(".png").and_then(|it| it.parse::<usize>().ok());
            row.is_some_and(|row| row < self.count && self.name(row) == name)
        };
        Ok(self.names()?.find(|name| !is_row(name) && !name.starts_with(".writing-")))
    }
}
