//! Tables: numbers with their verdict and warnings, and the differences of two reports.

use ddt_metrics::{Explanation, Report};

/// The numbers, the verdict and the warnings.
pub(super) fn table(report: &Report) -> String {
    let evaluation = &report.protocol.evaluation;
    let (samples, references) = (&evaluation.samples, &evaluation.references);
    let mut lines = vec![format!(
        "{} ({} images) against {} ({}), by {}",
        samples.name,
        samples.num_images,
        references.name,
        match (references.num_images, references.precomputed_statistics) {
            (0, _) => "statistics alone".to_owned(),
            (count, true) => format!("its statistics, {count} images"),
            (count, false) => format!("{count} images"),
        },
        evaluation.evaluator.name
    )];
    let widest = report.metrics.iter().map(|it| it.name.len()).max().unwrap_or(0);
    lines.extend(report.metrics.iter().map(|it| format!("  {:widest$}  {}", it.name, number(it.value))));
    if let Some(verdict) = &report.verdict {
        let protocol = &verdict.protocol;
        if verdict.follows() {
            lines.push(format!("measured as {protocol} requires"));
        } else {
            lines.push(format!("not the numbers of {protocol}, which requires otherwise:"));
            lines.extend(verdict.departures.iter().map(|it| format!("  {it}")));
        }
        lines.extend(verdict.unverified.iter().map(|it| format!("  unknown: {it}")));
    }
    lines.extend(report.warnings.iter().map(|it| format!("warning: {it}")));
    lines.join("\n")
}

/// The differences of two reports.
pub(super) fn explanation(it: &Explanation) -> String {
    let mut lines = vec!["numbers:".to_owned()];
    lines.extend(it.metrics.iter().map(|it| format!("  {it}")));
    if it.protocol.is_empty() {
        lines.push("both were measured in the same way".to_owned());
    } else {
        lines.push("differences in how they were measured:".to_owned());
        lines.extend(it.protocol.iter().map(|it| format!("  {it}")));
    }
    if !it.unknown.is_empty() {
        lines.push(format!("unknown of either: {}", it.unknown.join(", ")));
    }
    lines.join("\n")
}

/// Six digits, the small ones too.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.3e}") } else { format!("{value:.4}") }
}
