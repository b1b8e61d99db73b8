//! Where images come from: an npz file or a folder, a chunk of equally large ones at a time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ddt_data::{DataError, ImageFolder, Limits, Rgb8, read_rgb8};
use ddt_files::npz::{Dtype, NpzFile};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::progress::say;

/// Images of a chunk at most, and bytes of their pixels: what is lost when the program is stopped, and what
/// memory it needs.
const CHUNK_IMAGES: usize = 128;
const CHUNK_BYTES: usize = 64 << 20;
/// Files that are decoded at once.
const DECODED_AT_ONCE: usize = 8;
/// Pixels of an image at most.
const MAX_PIXELS: u64 = 1 << 24;

/// Some images of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Red, green and blue bytes, image by image, row by row.
    pub pixels: Vec<u8>,
}

impl Chunk {
    /// How many images there are.
    #[must_use]
    pub fn num_images(&self) -> usize {
        self.pixels.len() / self.image_bytes()
    }

    /// The pixels of each image.
    pub fn images(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.image_bytes())
    }

    /// SHA-256 of sizes and pixels.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} x {} x 3\n", self.height, self.width));
        hasher.update(&self.pixels);
        hasher.finalize().into()
    }

    fn image_bytes(&self) -> usize {
        (self.height * self.width * 3).max(1)
    }
}

/// Images on disk.
#[derive(Debug)]
pub struct Images {
    path: PathBuf,
    num_images: usize,
    size: Option<(usize, usize)>,
    labels: Option<Vec<i64>>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Npz(NpzFile),
    Folder(ImageFolder),
}

impl Images {
    /// The images `arr_0` of an npz file; integers of the same number in `arr_1` are their labels.
    ///
    /// # Errors
    ///
    /// No array `arr_0`, or one that is not uint8, N x H x W x 3, of at least one image.
    pub fn npz(file: NpzFile) -> Result<Self> {
        let array = file.array("arr_0")?;
        array.expect_dtype(Dtype::U8)?;
        array.expect_shape(&[None, None, None, Some(3)])?;
        let (path, shape) = (file.path().to_owned(), array.shape().to_vec());
        let (num_images, height, width) = (shape[0], shape[1], shape[2]);
        ensure!(
            num_images > 0 && height > 0 && width > 0,
            "expected at least one image of at least one pixel in {}, got {num_images} of {height} x {width}",
            path.display()
        );
        check_pixels(height as u64, width as u64).with_context(|| path.display().to_string())?;
        let labels = match file.contains("arr_1").then(|| file.array("arr_1")).transpose()? {
            Some(it) if it.shape() == [num_images] => it.i64_values().ok(),
            _ => None,
        };
        drop(array);
        Ok(Self { path, num_images, size: Some((height, width)), labels, source: Source::Npz(file) })
    }

    /// The images in a folder, or in the class folders in it.
    ///
    /// # Errors
    ///
    /// A folder without images or with both layouts, or one that cannot be read.
    pub fn folder(path: &Path) -> Result<Self> {
        let folder = ImageFolder::detect(path)?;
        say(&format!("{}: {}", path.display(), folder.report()));
        let labels = (0..folder.len()).map(|at| Ok(folder.label(at)?.map(i64::from)));
        let labels = labels.collect::<Result<Option<Vec<i64>>, DataError>>()?;
        let (path, num_images) = (path.to_owned(), folder.len());
        Ok(Self { path, num_images, size: None, labels, source: Source::Folder(folder) })
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many images there are.
    #[must_use]
    pub fn num_images(&self) -> usize {
        self.num_images
    }

    /// Height and width where the file states one for all.
    #[must_use]
    pub fn size(&self) -> Option<(usize, usize)> {
        self.size
    }

    /// The class of each image, where that is known.
    #[must_use]
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// Hands out all images in order, in chunks that depend on the images alone.
    ///
    /// # Errors
    ///
    /// What cannot be read or decoded, by name; the first error of `take`.
    pub fn for_each_chunk(&self, mut take: impl FnMut(Chunk) -> Result<()>) -> Result<()> {
        match &self.source {
            Source::Npz(file) => {
                let (height, width) = self.size.context("an archive without a size")?;
                let mut rows = file.array("arr_0")?.rows(0..self.num_images)?;
                let at_once = images_at_once(rows.row_bytes());
                while rows.left() > 0 {
                    let mut pixels = vec![0; at_once.min(rows.left()) * rows.row_bytes()];
                    rows.read(&mut pixels)?;
                    take(Chunk { height, width, pixels })?;
                }
                Ok(())
            }
            Source::Folder(folder) => {
                let mut joined = Joined::default();
                for first in (0..folder.len()).step_by(DECODED_AT_ONCE) {
                    let group = first..folder.len().min(first + DECODED_AT_ONCE);
                    let images: Vec<Result<Rgb8>> =
                        group.into_par_iter().map(|at| decode(&folder.path(at)?)).collect();
                    for image in images {
                        if let Some(full) = joined.add(image?) {
                            take(full)?;
                        }
                    }
                }
                joined.rest().map_or(Ok(()), take)
            }
        }
    }
}

fn check_pixels(height: u64, width: u64) -> Result<()> {
    ensure!(
        height.saturating_mul(width) <= MAX_PIXELS,
        "expected images of at most {MAX_PIXELS} pixels, got {height} x {width}"
    );
    Ok(())
}

fn decode(path: &Path) -> Result<Rgb8> {
    let image = read_rgb8(path, &Limits { max_pixels: MAX_PIXELS, ..Limits::default() })?;
    ensure!(image.width() > 0 && image.height() > 0, "{} has no pixels", path.display());
    Ok(image)
}

fn images_at_once(image_bytes: usize) -> usize {
    (CHUNK_BYTES / image_bytes.max(1)).clamp(1, CHUNK_IMAGES)
}

/// Images that wait for a chunk to be full.
#[derive(Default)]
struct Joined {
    chunk: Option<Chunk>,
}

impl Joined {
    /// Adds an image; gives the chunk before it if that is full or of another size.
    fn add(&mut self, image: Rgb8) -> Option<Chunk> {
        let (height, width) = (image.height() as usize, image.width() as usize);
        let fits = |it: &Chunk| {
            (it.height, it.width) == (height, width) && it.num_images() < images_at_once(it.image_bytes())
        };
        match &mut self.chunk {
            Some(chunk) if fits(chunk) => {
                chunk.pixels.extend_from_slice(image.as_bytes());
                None
            }
            other => other.replace(Chunk { height, width, pixels: image.into_bytes() }),
        }
    }

    fn rest(self) -> Option<Chunk> {
        self.chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, shade: u8) -> Rgb8 {
        Rgb8::new(width, height, vec![shade; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn chunks_have_images_of_one_size() {
        let mut joined = Joined::default();
        assert_eq!(joined.add(image(2, 3, 1)), None);
        assert_eq!(joined.add(image(2, 3, 2)), None);
        let first = joined.add(image(3, 2, 3)).unwrap();
        assert_eq!((first.num_images(), first.height, first.width), (2, 3, 2));
        assert_eq!(first.images().nth(1).unwrap(), [2; 18]);
        let last = joined.rest().unwrap();
        assert_ne!(last.sha256(), Chunk { height: 3, width: 2, ..last.clone() }.sha256());
        let mut joined = Joined::default();
        let full = (0..=CHUNK_IMAGES).find_map(|_| joined.add(image(1, 1, 0))).unwrap();
        assert_eq!(full.num_images(), CHUNK_IMAGES);
        assert_eq!(images_at_once(usize::MAX), 1);
    }
}
