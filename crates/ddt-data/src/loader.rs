//! Loader: images decoded and cropped ahead of their use, in order.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use ddt_picture::Rgb8;

use crate::{
    crop::{MAX_CROP_SIZE, center_crop},
    decode::{Limits, read_rgb8},
    error::DataError,
    image_folder::ImageFolder,
    ordered_pool::OrderedPool,
};

/// Skipped files that a report names; all are counted.
const MAX_SKIPPED_NAMES: usize = 1000;

const MAX_THREADS: usize = 1024;
const MAX_QUEUE: usize = 1 << 20;

/// Treatment of a file that is not an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorrupt {
    /// Deliver an error that names it.
    Fail,
    /// Deliver the next one instead, and note it in [`Skipped`].
    Skip,
}

/// Options of a [`Loader`]. Only `size` and `on_corrupt` change what it delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Side of the centre crop, in pixels.
    pub size: u32,
    /// The loader's own threads, 1 to 1024.
    pub threads: usize,
    /// Images decoded ahead at most, 1 to 1,048,576, of `3 size^2` bytes each.
    pub queue: usize,
    /// Treatment of a file that is not an image.
    pub on_corrupt: OnCorrupt,
    /// Bounds on a file.
    pub limits: Limits,
}

impl LoaderOptions {
    /// Fails on corrupt files, keeps the default limits, and decodes 16 images per thread ahead.
    pub fn new(size: u32, threads: usize) -> Self {
        let queue = threads.saturating_mul(16);
        Self { size, threads, queue, on_corrupt: OnCorrupt::Fail, limits: Limits::default() }
    }

    fn validate(&self) -> Result<(), DataError> {
        let check = |ok: bool, expected: &str, got: usize| {
            let wrong = || DataError::Argument { expected: expected.to_owned(), got: got.to_string() };
            if ok { Ok(()) } else { Err(wrong()) }
        };
        let size_ok = (1..=MAX_CROP_SIZE).contains(&self.size);
        check(size_ok, "a crop size of 1 to 8192 pixels", self.size as usize)?;
        check((1..=MAX_THREADS).contains(&self.threads), "1 to 1024 loader threads", self.threads)?;
        check((1..=MAX_QUEUE).contains(&self.queue), "a queue of 1 to 1048576 images", self.queue)
    }
}

/// One delivered image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its index in the folder.
    pub index: usize,
    /// Its label; none from a flat folder.
    pub label: Option<u32>,
    /// The centre crop, `size x size`.
    pub pixels: Rgb8,
}

/// Files that were skipped because they are not images.
#[derive(Debug, Default)]
pub struct Skipped {
    /// Number of files.
    pub count: u64,
    /// The first 1000 of them, in order of delivery.
    pub files: Vec<SkippedFile>,
}

/// A file that is not an image.
#[derive(Debug)]
pub struct SkippedFile {
    /// The file.
    pub path: PathBuf,
    /// The problem.
    pub reason: String,
}

/// Reads, decodes and crops images on threads of its own and delivers them in the order of `order`.
///
/// An iterator of results; an error takes the place of its image, and the next call gives the next image.
/// The delivery depends on the files and on `order` only: for a seeded order, on seed and epoch.
///
/// The threads are not those of rayon's pool, which belongs to the training step: loading neither waits for
/// it nor delays it. At most [`LoaderOptions::queue`] images are waiting in memory, so a slow consumer stops
/// the loader. The consumer's thread reads `order`, that far ahead. Dropping the loader ends its threads
/// after the images they are decoding.
#[derive(Debug)]
pub struct Loader<I> {
    folder: Arc<ImageFolder>,
    /// `None` once it has ended.
    order: Option<I>,
    pool: OrderedPool<Job, Result<Rgb8, DataError>>,
    /// Indices submitted and not delivered, oldest first.
    expected: VecDeque<usize>,
    options: LoaderOptions,
    skipped: Skipped,
}

type Job = Result<PathBuf, DataError>;

impl<I: Iterator<Item = usize>> Loader<I> {
    /// Starts loading.
    ///
    /// # Errors
    /// [`DataError::Argument`] for options out of range, and [`DataError::Thread`].
    pub fn new(
        folder: Arc<ImageFolder>,
        order: impl IntoIterator<IntoIter = I>,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        options.validate()?;
        let LoaderOptions { size, limits, .. } = options;
        let load = move |job: Job| {
            let path = job?;
            let pixels = read_rgb8(&path, &limits)?;
            center_crop(&pixels, size).map_err(|reason| DataError::Image { path, reason })
        };
        let pool = OrderedPool::new(options.threads, load).map_err(DataError::Thread)?;
        let order = Some(order.into_iter());
        let mut loader =
            Self { folder, order, pool, expected: VecDeque::new(), options, skipped: Skipped::default() };
        loader.fill();
        Ok(loader)
    }

    /// Files skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Keeps the queue full while there is an order to follow.
    fn fill(&mut self) {
        while self.expected.len() < self.options.queue {
            let Some(index) = self.order.as_mut().and_then(Iterator::next) else {
                self.order = None;
                return;
            };
            self.expected.push_back(index);
            self.pool.submit(self.folder.path(index));
        }
    }
}

impl<I: Iterator<Item = usize>> Iterator for Loader<I> {
    type Item = Result<Sample, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let result = self.pool.next()?;
            let index = self.expected.pop_front()?;
            self.fill();
            return Some(match result {
                Ok(Ok(pixels)) => self.folder.label(index).map(|label| Sample { index, label, pixels }),
                // A file that cannot be read is a fault of the system, not of the dataset: never skipped.
                Ok(Err(DataError::Image { path, reason })) if self.options.on_corrupt == OnCorrupt::Skip => {
                    self.skipped.count += 1;
                    if self.skipped.files.len() < MAX_SKIPPED_NAMES {
                        self.skipped.files.push(SkippedFile { path, reason: reason.to_string() });
                    }
                    continue;
                }
                Ok(Err(error)) => Err(error),
                Err(_) => self.folder.path(index).and_then(|path| {
                    Err(DataError::Layout { path, problem: "the loader panicked on this file".to_owned() })
                }),
            });
        }
    }
}
