//! What differs between two reports.

use std::fmt;

use serde_json::{Map, Value};

use crate::Report;

/// A field that two reports do not share.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Where it stands, such as `sample.guidance.scale`.
    pub field: String,
    /// Its value in the first; `None` where it has none.
    pub first: Option<String>,
    /// Its value in the second.
    pub second: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".to_owned());
        write!(f, "{}: {} and {}", self.field, shown(&self.first), shown(&self.second))
    }
}

/// What stands between two reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Explanation {
    /// Numbers of either, side by side, equal or not.
    pub metrics: Vec<Difference>,
    /// What differs in how they came about; nothing of it means that the numbers can be compared.
    pub protocol: Vec<Difference>,
    /// Fields of the protocol that neither knows, so that they may differ.
    pub unknown: Vec<String>,
}

/// Lists what differs between two reports.
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
    use crate::Metric;
    use crate::report::testing::report;

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
