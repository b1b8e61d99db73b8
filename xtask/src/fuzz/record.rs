//! The record of fuzzing: executions of each target, summed over runs, and the largest coverage.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Counts by target.
#[derive(Default)]
pub(super) struct Record(BTreeMap<String, Counts>);

#[derive(Default, Clone, Copy)]
struct Counts {
    executions: u64,
    seconds: u64,
    edges: u64,
    features: u64,
    inputs: u64,
    findings: u64,
}

impl Counts {
    const NAMES: [&str; 6] = ["executions", "seconds", "edges", "features", "inputs", "findings"];

    fn values(&mut self) -> [&mut u64; 6] {
        let Self { executions, seconds, edges, features, inputs, findings } = self;
        [executions, seconds, edges, features, inputs, findings]
    }
}

impl Record {
    /// Reads a record; without a file it is empty.
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        let value: Value =
            serde_json::from_slice(&fs::read(path)?).with_context(|| path.display().to_string())?;
        let counts = |value: &Value| {
            let mut counts = Counts::default();
            Counts::NAMES
                .iter()
                .zip(counts.values())
                .for_each(|(name, to)| *to = value[name].as_u64().unwrap_or(0));
            counts
        };
        Ok(Self(
            value.as_object().into_iter().flatten().map(|(name, it)| (name.clone(), counts(it))).collect(),
        ))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let counts = |mut counts: Counts| -> Value {
            let values = counts.values().map(|it| json!(*it));
            Counts::NAMES.map(str::to_owned).into_iter().zip(values).collect::<serde_json::Map<_, _>>().into()
        };
        let all: serde_json::Map<String, Value> =
            self.0.iter().map(|(name, it)| (name.clone(), counts(*it))).collect();
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_string_pretty(&all)? + "\n")?;
        Ok(fs::rename(new, path)?)
    }

    pub(super) fn executions(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |it| it.executions)
    }

    /// Adds a run, from what the fuzzer printed.
    pub(super) fn add(&mut self, name: &str, log: &str, is_finding: bool) {
        let counts = self.0.entry(name.to_owned()).or_default();
        let executions = number(log, "stat::number_of_executed_units:");
        counts.executions += executions;
        counts.seconds += executions / number(log, "stat::average_exec_per_sec:").max(1);
        counts.findings += u64::from(is_finding);
        let status = log.lines().rev().find(|it| it.contains(" cov: ")).unwrap_or_default();
        counts.edges = counts.edges.max(number(status, " cov: "));
        counts.features = counts.features.max(number(status, " ft: "));
        counts.inputs = number(status, " corp: ").max(1);
    }
}

/// The number after a word, or 0.
pub(super) fn number(text: &str, word: &str) -> u64 {
    let after = text.split(word).nth(1).unwrap_or_default().trim_start();
    after.split(|it: char| !it.is_ascii_digit()).next().and_then(|it| it.parse().ok()).unwrap_or(0)
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| target | executions | edges | features | inputs kept | seconds | findings |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let mut total = [0; 3];
        for (name, it) in &self.0 {
            let Counts { executions, seconds, edges, features, inputs, findings } = it;
            writeln!(
                f,
                "| {name} | {} | {edges} | {features} | {inputs} | {seconds} | {findings} |",
                grouped(*executions)
            )?;
            total = [total[0] + executions, total[1] + seconds, total[2] + findings];
        }
        let [executions, seconds, findings] = total;
        writeln!(f, "| **all** | {} | | | | {seconds} | {findings} |", grouped(executions))
    }
}

/// A number with commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#2\tINITED cov: 10 ft: 11 corp: 1/1b\n#900\tDONE   cov: 30 ft: 45 corp: 7/1Kb lim: 4\n\
                       stat::number_of_executed_units: 1234567\nstat::average_exec_per_sec:     1000\n";

    #[test]
    fn runs_add_up_and_survive_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        let mut record = Record::read(&path).unwrap();
        record.add("npz", LOG, false);
        record.add("npz", LOG, true);
        record.write(&path).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!(read.executions("npz"), 2 * 1_234_567);
        assert!(read.to_string().contains("| npz | 2,469,134 | 30 | 45 | 7 | 2468 | 1 |"), "{read}");
        assert_eq!(read.executions("absent"), 0);
    }
}
