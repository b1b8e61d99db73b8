//! What an archive is to hold.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::npz::error::NpzError;
use crate::npz::header::{Dtype, NpyHeader};
use crate::npz::zip_layout::ArrayEntry;

/// Differences that a message lists at most.
const LISTED: usize = 8;

/// Characters of a value in a message.
const CLIPPED: usize = 60;

/// What an archive is to hold, and how its images are made; all processes of a job state the same.
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
        NpyHeader { dtype: Dtype::U8, shape, fortran_order: false }
    }

    /// The images as an entry of the archive, if they can be one.
    pub(crate) fn check(&self) -> Result<ArrayEntry, NpzError> {
        let Self { count, height, width, batch, .. } = *self;
        let whole = [count, height, width, batch].iter().all(|it| *it > 0);
        let fits = batch.checked_mul(self.image_bytes()).is_some_and(|it| it < usize::MAX);
        let entry = ArrayEntry::new("arr_0", &self.images_header(), 0).filter(|_| whole && fits);
        entry.ok_or_else(|| NpzError::Invalid {
            what: "job",
            expected: "at least one image of at least one pixel, and a size that fits in a file".to_owned(),
            got: format!("{count} images of {height} x {width} in batches of {batch}"),
        })
    }

    pub(crate) fn to_json(&self) -> String {
        let value = serde_json::json!(self);
        format!("{value:#}\n")
    }

    /// SHA-256 of the description.
    pub(crate) fn id(&self) -> String {
        Sha256::digest(self.to_json()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Compares with a description that was found in `path`.
    pub(crate) fn compare(&self, path: &Path, found: &[u8]) -> Result<(), NpzError> {
        let other = |differences: String| Err(NpzError::OtherJob { path: path.to_owned(), differences });
        let Ok(found) = serde_json::from_slice::<Value>(found) else {
            return other("its description cannot be read".to_owned());
        };
        // Read back like the other, so that both have been through the same rounding.
        let ours: Value = serde_json::from_str(&self.to_json()).unwrap_or_default();
        let mut differences = Vec::new();
        compare(&mut differences, "", Some(&found), Some(&ours));
        if differences.is_empty() {
            return Ok(());
        }
        let more = differences.len().saturating_sub(LISTED);
        differences.truncate(LISTED);
        if more > 0 {
            differences.push(format!("{more} more"));
        }
        other(differences.join(", "))
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
        job().compare(Path::new("w"), found.as_bytes()).unwrap();
        let mut other = job();
        other.batch = 5;
        other.protocol["seed"] = json!(2);
        other.protocol["guidance"]["interval"] = json!([0.0, 1.0]);
        other.protocol["rng"] = json!("torch");
        let message = other.compare(Path::new("w"), found.as_bytes()).unwrap_err().to_string();
        for part in [
            "batch is 4 there and 5 here",
            "protocol.seed is 1 there and 2 here",
            "protocol.guidance.interval is [0.3,1.0] there and [0.0,1.0] here",
            "protocol.rng is absent there and \"torch\" here",
        ] {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
        assert!(!message.contains("count"), "{message}");
        assert_ne!(other.id(), job().id());
        let message = job().compare(Path::new("w"), b"{").unwrap_err().to_string();
        assert!(message.contains("cannot be read"), "{message}");
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
            assert!(matches!(wrong.check(), Err(NpzError::Invalid { what: "job", .. })), "{wrong:?}");
        }
        job().check().unwrap();
    }
}
