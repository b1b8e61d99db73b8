//! A painter that needs no network: every byte follows from the image's number.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ddt_files::npz::{ArchiveJob, ImageArchive, Next, NpzError, Shard};
use serde::{Deserialize, Serialize};

/// A job, and who does it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    pub(crate) count: usize,
    pub(crate) side: usize,
    pub(crate) batch: usize,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    /// Time that an image takes.
    pub(crate) pause_us: u64,
}

impl Run {
    pub(crate) fn new(path: &Path, count: usize, batch: usize) -> Self {
        Self { path: path.to_owned(), count, side: 4, batch, rank: 0, world: 1, pause_us: 0 }
    }

    pub(crate) fn job(&self) -> ArchiveJob {
        let protocol = serde_json::json!({ "painter": "stub", "seed": 3 });
        ArchiveJob { count: self.count, height: self.side, width: self.side, batch: self.batch, protocol }
    }

    pub(crate) fn labels(&self) -> Vec<i64> {
        (0..self.count as i64).map(|it| it * 7 % 10).collect()
    }

    /// Works until the archive is finished; says how many batches it painted.
    pub(crate) fn finish(&self) -> Result<usize, NpzError> {
        let share = Shard::new(self.rank, self.world)?;
        let mut painted = 0;
        let Some(mut archive) = ImageArchive::open(&self.path, &self.job())? else {
            return Ok(painted);
        };
        loop {
            match archive.next(share)? {
                Next::Batch(claim) => {
                    let mut pixels = Vec::new();
                    for image in claim.images() {
                        paint(image, self.job().image_bytes(), &mut pixels);
                        std::thread::sleep(Duration::from_micros(self.pause_us));
                    }
                    archive.write(claim, &pixels)?;
                    painted += 1;
                }
                Next::Wait => std::thread::sleep(Duration::from_millis(5)),
                Next::Filled => {
                    archive.finish(&self.labels())?;
                    return Ok(painted);
                }
                Next::Complete => return Ok(painted),
            }
        }
    }
}

/// Appends an image's bytes.
pub(crate) fn paint(image: usize, bytes: usize, pixels: &mut Vec<u8>) {
    let mut state = (image as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    pixels.extend((0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    }));
}
