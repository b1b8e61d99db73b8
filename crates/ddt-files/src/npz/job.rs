//! The job of an archive of images, and the part of it that one process begins with.

use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::FileError;
use crate::npz::header::NpyHeader;

/// Differences that a message lists at most.
const LISTED: usize = 8;

/// Characters of a value in a message.
const CLIPPED: usize = 60;

/// Content of an archive of images, and how they are made; all processes of a job state the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchiveJob {
    /// Number of images.
    pub count: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Images of a batch; the last one may have fewer.
    pub batch: usize,
    /// Everything else that the images depend on, as it is to be stored beside the archive.
    pub protocol: Value,
}

impl ArchiveJob {
    /// Size of one image in bytes.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.height.saturating_mul(self.width).saturating_mul(3)
    }

    /// Number of batches.
    #[must_use]
    pub fn num_batches(&self) -> usize {
        self.count.div_ceil(self.batch.max(1))
    }

    /// Positions of a batch's images.
    pub(crate) fn images_of(&self, batch: usize) -> Range<usize> {
        let start = batch * self.batch;
        start..self.count.min(start.saturating_add(self.batch))
    }

    pub(crate) fn images_header(&self) -> NpyHeader {
        let shape = vec![self.count, self.height, self.width, 3];
        NpyHeader { dtype: DType::U8, shape, fortran_order: false }
    }

    /// Refuses a job without images, or of more than a file can hold.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        let Self { count, height, width, batch, .. } = *self;
        let whole = [count, height, width, batch].iter().all(|it| *it > 0);
        let fits = batch.checked_mul(self.image_bytes()).is_some_and(|it| it < usize::MAX);
        // Positions in files are below 2^63.
        if whole && fits && self.images_header().data_bytes().is_some_and(|it| it < 1 << 62) {
            return Ok(());
        }
        let expected = "at least one image of at least one pixel, and a size that fits in a file";
        let got = format!("{count} images of {height} x {width} in batches of {batch}");
        Err(FileError::invalid("job", expected, got))
    }

    pub(crate) fn to_json(&self) -> String {
        let value = serde_json::json!(self);
        format!("{value:#}\n")
    }

    /// Compares with a description that was found in `path`.
    pub(crate) fn compare(&self, path: &Path, found: &Value) -> Result<(), FileError> {
        // Read back like the other, so that both have been through the same rounding.
        let ours: Value = serde_json::from_str(&self.to_json()).unwrap_or_default();
        let mut differences = Vec::new();
        compare(&mut differences, "", Some(found), Some(&ours));
        if differences.is_empty() {
            return Ok(());
        }
        let more = differences.len().saturating_sub(LISTED);
        differences.truncate(LISTED);
        if more > 0 {
            differences.push(format!("{more} more"));
        }
        let problem = format!(
            "it belongs to another job: {}; run the command that began it, choose another place, or remove it",
            differences.join(", ")
        );
        Err(FileError::unusable(path, problem))
    }
}

fn compare(differences: &mut Vec<String>, name: &str, there: Option<&Value>, here: Option<&Value>) {
    if there == here {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (there, here) {
        let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
        for key in keys {
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            compare(differences, &name, a.get(key), b.get(key));
        }
        return;
    }
    let shown = |value: Option<&Value>| {
        let text = value.map_or_else(|| "absent".to_owned(), ToString::to_string);
        let mut clipped: String = text.chars().take(CLIPPED).collect();
        if clipped.len() < text.len() {
            clipped.push('…');
        }
        clipped
    };
    differences.push(format!("{name} is {} there and {} here", shown(there), shown(here)));
}

/// One process of several: it decides with which batches a process begins, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    // Invariant: rank < world.
    rank: usize,
    world: usize,
}

impl Shard {
    /// The only process.
    pub const ALONE: Self = Self { rank: 0, world: 1 };

    /// Process `rank` (from 0) of `world`.
    ///
    /// # Errors
    /// [`FileError::Invalid`] unless `rank < world`.
    pub fn new(rank: usize, world: usize) -> Result<Self, FileError> {
        if rank < world {
            return Ok(Self { rank, world });
        }
        let expected = match world.checked_sub(1) {
            None => "at least 1 process".to_owned(),
            Some(last) => format!("a rank from 0 to {last}"),
        };
        Err(FileError::invalid("share", expected, format!("rank {rank} of {world}")))
    }

    /// Number of this process, from 0.
    #[must_use]
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Number of processes.
    #[must_use]
    pub fn world(self) -> usize {
        self.world
    }

    /// All batches: `rank, rank + world, ...`, and then those of others from the last one down, where their
    /// processes come last.
    pub(crate) fn order(self, num_batches: usize) -> impl Iterator<Item = usize> {
        let others = (0..num_batches).rev().filter(move |batch| batch % self.world != self.rank);
        (self.rank..num_batches).step_by(self.world).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> ArchiveJob {
        let protocol = json!({ "seed": 1, "guidance": { "scale": 0.1 + 0.2, "interval": [0.3, 1.0] } });
        ArchiveJob { count: 10, height: 2, width: 3, batch: 4, protocol }
    }

    #[test]
    fn batches_cover_all_images_once() {
        let ranges: Vec<Range<usize>> = (0..job().num_batches()).map(|it| job().images_of(it)).collect();
        assert_eq!(ranges, [0..4, 4..8, 8..10]);
        assert_eq!(job().image_bytes(), 18);
    }

    #[test]
    fn another_job_is_told_by_every_difference() {
        let found = job().to_json();
        let found: Value = serde_json::from_str(&found).unwrap();
        job().compare(Path::new("w"), &found).unwrap();
        let mut other = job();
        other.batch = 5;
        other.protocol["seed"] = json!(2);
        other.protocol["guidance"]["interval"] = json!([0.0, 1.0]);
        other.protocol["rng"] = json!("torch");
        let message = other.compare(Path::new("w"), &found).unwrap_err().to_string();
        for part in [
            "batch is 4 there and 5 here",
            "protocol.seed is 1 there and 2 here",
            "protocol.guidance.interval is [0.3,1.0] there and [0.0,1.0] here",
            "protocol.rng is absent there and \"torch\" here",
        ] {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
        assert!(!message.contains("count"), "{message}");
        let message = job().compare(Path::new("w"), &Value::Null).unwrap_err().to_string();
        assert!(message.contains("w: it belongs to another job:  is null there"), "{message}");
    }

    #[test]
    fn impossible_jobs_are_refused() {
        for change in [
            |it: &mut ArchiveJob| it.count = 0,
            |it: &mut ArchiveJob| it.height = 0,
            |it: &mut ArchiveJob| it.width = 0,
            |it: &mut ArchiveJob| it.batch = 0,
            |it: &mut ArchiveJob| it.count = usize::MAX,
            |it: &mut ArchiveJob| it.height = usize::MAX / 3,
            |it: &mut ArchiveJob| it.batch = usize::MAX / 2,
        ] {
            let mut wrong = job();
            change(&mut wrong);
            assert!(matches!(wrong.check(), Err(FileError::Invalid { what: "job", .. })), "{wrong:?}");
        }
        job().check().unwrap();
    }

    #[test]
    fn own_batches_come_first_and_all_come_once() {
        let order: Vec<usize> = Shard::new(1, 3).unwrap().order(8).collect();
        assert_eq!(order, [1, 4, 7, 6, 5, 3, 2, 0]);
        assert_eq!(Shard::ALONE.order(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Shard::new(9, 10).unwrap().order(3).collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn impossible_shares_are_refused() {
        let message = |rank, world| Shard::new(rank, world).unwrap_err().to_string();
        assert_eq!(message(3, 3), "share: expected a rank from 0 to 2, got rank 3 of 3");
        assert_eq!(message(0, 0), "share: expected at least 1 process, got rank 0 of 0");
    }
}
