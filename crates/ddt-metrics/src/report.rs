//! Reports: the numbers of an evaluation with everything they depend on, and the differences between two.

use std::{fmt, fs::File, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::MetricsError,
    protocol::{Protocol, Verdict},
    warnings::Warning,
};

/// Largest file that is read as a report.
const MAX_REPORT_BYTES: u64 = 16 << 20;

/// Version of reports that this crate writes.
pub const REPORT_VERSION: u32 = 1;

/// A number with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Its name, such as `fid`, or `frechet_distance` where a protocol was not followed.
    pub name: String,
    /// The number.
    pub value: f64,
}

/// Report of an evaluation: numbers with their protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of this format, [`REPORT_VERSION`].
    pub version: u32,
    /// The numbers, in the order in which they are shown.
    pub metrics: Vec<Metric>,
    /// Whether a named protocol was followed, if one was requested.
    pub verdict: Option<Verdict>,
    /// Reasons not to trust the numbers.
    pub warnings: Vec<Warning>,
    /// Settings of their measurement.
    pub protocol: Protocol,
}

impl Report {
    /// The number of a name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|it| it.name == name).map(|it| it.value)
    }

    /// The report as JSON; numbers come back bit for bit.
    ///
    /// # Errors
    /// None in practice: everything in a report can be written as JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Reads a report of at most 16 MiB.
    ///
    /// # Errors
    /// [`MetricsError::Report`] for a file that cannot be read, or is not a report of this version.
    pub fn read(path: &Path) -> Result<Self, MetricsError> {
        let wrong = |problem: String| MetricsError::Report { path: path.to_owned(), problem };
        let unreadable = |it: std::io::Error| wrong(format!("cannot read the report: {it}"));
        let mut text = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_REPORT_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_REPORT_BYTES {
            return Err(wrong(format!("expected a report of at most {MAX_REPORT_BYTES} bytes, got more")));
        }
        Self::parse(&text, path)
    }

    /// Parses the text of a report; `path` is for messages.
    ///
    /// # Errors
    /// [`MetricsError::Report`] for anything but a report of this version.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self, MetricsError> {
        let wrong = |problem: String| MetricsError::Report { path: path.to_owned(), problem };
        let not_a_report =
            |it: serde_json::Error| wrong(format!("expected a report, got JSON that is not: {it}"));
        let value: Value = serde_json::from_slice(json).map_err(not_a_report)?;
        // Checked before the fields, which differ in other versions.
        if let Some(got) = value["version"].as_u64().and_then(|it| u32::try_from(it).ok())
            && got != REPORT_VERSION
        {
            return Err(wrong(format!("expected a report of version {REPORT_VERSION}, got version {got}")));
        }
        serde_json::from_value(value).map_err(not_a_report)
    }
}

/// A field that differs between two reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Path of the field, such as `sample.guidance.scale`.
    pub field: String,
    /// Its value in the first report; `None` where it has none.
    pub first: Option<String>,
    /// Its value in the second report.
    pub second: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".to_owned());
        write!(f, "{}: {} and {}", self.field, shown(&self.first), shown(&self.second))
    }
}

/// Comparison of two reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Explanation {
    /// All numbers of both, equal or not.
    pub metrics: Vec<Difference>,
    /// Differences in their protocols; without any, the numbers can be compared.
    pub protocol: Vec<Difference>,
    /// Fields that neither protocol states, and that may differ.
    pub unknown: Vec<String>,
}

/// Compares two reports.
#[must_use]
pub fn explain(first: &Report, second: &Report) -> Explanation {
    let mut explanation = Explanation::default();
    let fields = |report: &Report| serde_json::to_value(&report.protocol).unwrap_or_default();
    compare("", &fields(first), &fields(second), &mut explanation);
    let names = first.metrics.iter().chain(&second.metrics).map(|it| it.name.as_str());
    for name in names {
        if explanation.metrics.iter().all(|it| it.field != name) {
            let shown = |report: &Report| report.value(name).map(|it| it.to_string());
            let (first, second) = (shown(first), shown(second));
            explanation.metrics.push(Difference { field: name.to_owned(), first, second });
        }
    }
    explanation
}

fn compare<'a>(field: &str, first: &'a Value, second: &'a Value, into: &mut Explanation) {
    match (first, second) {
        (Value::Object(first), Value::Object(second)) => {
            let mut names: Vec<&String> = first.keys().chain(second.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let field = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                let value = |of: &'a Map<String, Value>| of.get(name).unwrap_or(&Value::Null);
                compare(&field, value(first), value(second), into);
            }
        }
        (Value::Null, Value::Null) => into.unknown.push(field.to_owned()),
        (first, second) if first == second => (),
        (first, second) => {
            let field = field.to_owned();
            into.protocol.push(Difference { field, first: shown(first), second: shown(second) });
        }
    }
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::testing::protocol;

    fn report() -> Report {
        let warnings = vec![Warning::Note { text: "a test".to_owned() }];
        let metrics = vec![Metric { name: "fid".to_owned(), value: 0.1 + 0.2 }];
        Report { version: REPORT_VERSION, metrics, verdict: None, warnings, protocol: protocol() }
    }

    #[test]
    fn reports_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = report();
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        assert_eq!((report.value("fid"), report.value("sfid")), (Some(0.1 + 0.2), None));
    }

    #[test]
    fn files_that_are_not_reports_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Report::read(&path)
        };
        let refused = |outcome: Result<Report, MetricsError>| outcome.unwrap_err().to_string();
        assert!(refused(read(b"")).contains("expected a report, got JSON"));
        assert!(refused(read(b"[1, 2")).contains("expected a report, got JSON"));
        assert!(refused(read(&[0xff; 100])).contains("expected a report, got JSON"));
        assert!(refused(read("[".repeat(100_000).as_bytes())).contains("expected a report, got JSON"));
        assert!(refused(read(b"{\"version\": 7}")).contains("version 1, got version 7"));
        assert!(refused(read(b"{\"version\": 1}")).contains("expected a report, got JSON"));
        let mut unknown: Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
        unknown["extra"] = 1.into();
        assert!(refused(read(unknown.to_string().as_bytes())).contains("expected a report, got JSON"));
        File::create(&path).unwrap().set_len(MAX_REPORT_BYTES + 1).unwrap();
        assert!(refused(Report::read(&path)).contains("at most 16777216 bytes"));
        let absent = refused(Report::read(&folder.path().join("absent.json")));
        assert!(absent.contains("absent.json: cannot read"), "{absent}");
    }

    #[test]
    fn differences_are_named_and_equal_reports_have_none() {
        let first = report();
        let same = explain(&first, &first);
        assert!(same.protocol.is_empty() && same.metrics.len() == 1);
        assert_eq!(same.unknown, ["sample.plan"]);

        let mut second = first.clone();
        second.protocol.sample = Some(serde_json::json!({
            "guidance": { "scale": 2.0, "interval": [0.0, 1.0] }, "plan": null, "steps": 50,
        }));
        second.protocol.evaluation.evaluator.name = "other".to_owned();
        second.metrics.push(Metric { name: "recall".to_owned(), value: 0.5 });
        let got = explain(&first, &second);
        let lines: Vec<String> = got.protocol.iter().map(ToString::to_string).collect();
        let expected = [
            "evaluation.evaluator.name: inception-2015-tf and other",
            "sample.guidance.interval: [0.3,1.0] and [0.0,1.0]",
            "sample.solver: euler and unknown",
            "sample.steps: unknown and 50",
        ];
        assert_eq!(lines, expected);
        second.protocol.sample = None;
        let got = explain(&first, &second);
        assert!(got.protocol.iter().any(|it| it.field == "sample" && it.second.is_none()));
        assert_eq!(got.metrics[1].to_string(), "recall: unknown and 0.5");
    }
}
