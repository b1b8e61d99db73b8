//! The result of an evaluation: numbers, with all that they depend on.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{MetricsError, Protocol, Verdict, Warning};

/// The largest file that is read as a report.
pub const MAX_REPORT_BYTES: u64 = 16 << 20;

/// The version of reports that this crate writes.
pub const REPORT_VERSION: u32 = 1;

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Its name, such as `fid`, or `frechet_distance` where a protocol was not followed.
    pub name: String,
    /// The number.
    pub value: f64,
}

/// Numbers with their protocol; what `evaluate` writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of this format, [`REPORT_VERSION`].
    pub version: u32,
    /// The numbers, in the order in which they are shown.
    pub metrics: Vec<Metric>,
    /// Whether a named protocol was followed, if one was asked for.
    pub verdict: Option<Verdict>,
    /// What to know beside the numbers.
    pub warnings: Vec<Warning>,
    /// How they came about.
    pub protocol: Protocol,
}

impl Report {
    /// Looks a number up by its name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|it| it.name == name).map(|it| it.value)
    }

    /// The report as JSON; numbers come back bit for bit.
    ///
    /// # Errors
    ///
    /// What serde cannot write; nothing in a report is of that kind.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Reads a report, at most [`MAX_REPORT_BYTES`].
    ///
    /// # Errors
    ///
    /// [`MetricsError::ReportFile`], [`MetricsError::ReportSize`], [`MetricsError::ReportVersion`] or
    /// [`MetricsError::ReportFormat`], each with the path.
    pub fn read(path: &Path) -> Result<Self, MetricsError> {
        let named = || path.to_owned();
        let unreadable = |source| MetricsError::ReportFile { path: named(), source };
        let no_report = |source| MetricsError::ReportFormat { path: named(), source };
        let mut text = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_REPORT_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_REPORT_BYTES {
            return Err(MetricsError::ReportSize { path: named(), got: text.len() as u64 });
        }
        let value: Value = serde_json::from_slice(&text).map_err(no_report)?;
        // Before the fields, which another version may have others of.
        if let Some(got) = value["version"].as_u64().and_then(|it| u32::try_from(it).ok())
            && got != REPORT_VERSION
        {
            return Err(MetricsError::ReportVersion { path: named(), expected: REPORT_VERSION, got });
        }
        serde_json::from_value(value).map_err(no_report)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::{ClassCounts, EvaluationProtocol, Evaluator, INCEPTION_2015, ImageSet};

    /// A protocol that follows ADM's at 256 pixels.
    pub(crate) fn protocol() -> Protocol {
        let set = |name: &str, num_images, precomputed_statistics| ImageSet {
            name: name.to_owned(),
            sha256: "ab".repeat(32),
            num_images,
            image_size: Some((256, 256)),
            classes: Some(ClassCounts { num_classes: 1000, fewest: 50, most: 50 }),
            precomputed_statistics,
        };
        Protocol {
            sample: Some(serde_json::json!({
                "solver": "euler", "guidance": { "scale": 2.0, "interval": [0.3, 1.0] }, "plan": null,
            })),
            evaluation: EvaluationProtocol {
                samples: set("samples.npz", 50_000, false),
                references: set("VIRTUAL_imagenet256_labeled.npz", 10_000, true),
                evaluator: Evaluator {
                    name: INCEPTION_2015.to_owned(),
                    weights_sha256: "cd".repeat(32),
                    feature_size: 2048,
                },
                neighbourhood: 3,
                split_size: 5000,
            },
        }
    }

    pub(crate) fn report() -> Report {
        let warnings = vec![Warning::Note { text: "a test".to_owned() }];
        let metrics = vec![Metric { name: "fid".to_owned(), value: 0.1 + 0.2 }];
        Report { version: REPORT_VERSION, metrics, verdict: None, warnings, protocol: protocol() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = testing::report();
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        assert_eq!((report.value("fid"), report.value("sfid")), (Some(0.1 + 0.2), None));
    }

    #[test]
    fn what_is_no_report_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Report::read(&path)
        };
        assert!(matches!(read(b""), Err(MetricsError::ReportFormat { .. })));
        assert!(matches!(read(b"[1, 2"), Err(MetricsError::ReportFormat { .. })));
        assert!(matches!(read(&[0xff; 100]), Err(MetricsError::ReportFormat { .. })));
        assert!(matches!(read("[".repeat(100_000).as_bytes()), Err(MetricsError::ReportFormat { .. })));
        assert!(matches!(read(b"{\"version\": 7}"), Err(MetricsError::ReportVersion { got: 7, .. })));
        assert!(matches!(read(b"{\"version\": 1}"), Err(MetricsError::ReportFormat { .. })));
        let mut unknown: Value = serde_json::from_str(&testing::report().to_json().unwrap()).unwrap();
        unknown["extra"] = 1.into();
        assert!(matches!(read(unknown.to_string().as_bytes()), Err(MetricsError::ReportFormat { .. })));
        File::create(&path).unwrap().set_len(MAX_REPORT_BYTES + 1).unwrap();
        assert!(matches!(Report::read(&path), Err(MetricsError::ReportSize { .. })));
        let absent = Report::read(&folder.path().join("absent.json")).unwrap_err();
        assert!(absent.to_string().contains("absent.json"), "{absent}");
    }
}
