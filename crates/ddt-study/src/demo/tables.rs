//! Tables and plots of the demo's measurements.

use std::fmt::Write;

use anyhow::{Context, Result};
use ddt_plot::{LinePlot, Series};

use super::settings::{
    DemoStudy, Group, LOWER_ENDS, Measured, SCALES, SOLVERS, STEPS, Setting, Sharing, Stepping, TIMESHIFTS,
    budgets, shared, swept,
};
use crate::{metric::Seen, results::ResultsFile};

type Results = ResultsFile<Measured>;

/// The tables of some groups, in Markdown.
///
/// # Errors
///
/// When a setting was not measured.
pub(crate) fn markdown(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = format!("{} images a line, compared with all training photos.\n", study.images);
    for group in study.groups() {
        text += "\n";
        text += &match group {
            Group::Floor => floor(study, results)?,
            Group::Sharing => sharing(study, results)?,
            Group::Guidance => guidance(study, results)?,
            Group::Steps => steps(results)?,
        };
    }
    Ok(text)
}

/// The plot of a group, if it has one, and the name of its file.
pub(crate) fn plot(group: Group, study: &DemoStudy, results: &Results) -> Option<(&'static str, String)> {
    let (name, title, x_label, series) = match group {
        Group::Floor => return None,
        Group::Sharing => {
            ("sharing.svg", "Sharing", "share of steps that reuse the self-condition", shares(study, results))
        }
        Group::Guidance => ("guidance.svg", "Guidance", "guidance", scales(study, results)),
        Group::Steps => ("steps.svg", "Steps", "steps", numbers(results)),
    };
    let title = &format!("{title}: distance to training photos");
    let y_label = "distance of classifier features";
    let plot = LinePlot { title, x_label, y_label, log_y: false, series: &series };
    Some((name, plot.svg()))
}

fn get(results: &Results, setting: &Setting) -> Result<Measured> {
    let key = setting.key();
    results.get(&key).copied().with_context(|| format!("{key} is missing"))
}

/// "distance (class right)".
fn short(Seen { distance, accuracy }: Seen) -> String {
    format!("{distance:.3} ({:.1} %)", 100.0 * accuracy)
}

fn floor(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = "| images | distance | class right |\n|---|---|---|\n".to_owned();
    let lines = [
        ("test photos", Setting::Photos),
        ("test photos through the autoencoder", Setting::Reconstructions),
        ("demo, no guidance", swept(study.steps, 1.0, 0.0)),
        ("demo, guidance 4 in (0, 1)", shared(study.steps, Sharing::None)),
    ];
    for (name, setting) in lines {
        let Seen { distance, accuracy } = get(results, &setting)?.seen;
        writeln!(text, "| {name} | {distance:.3} | {:.1} % |", 100.0 * accuracy)?;
    }
    Ok(text)
}

fn sharing(study: &DemoStudy, results: &Results) -> Result<String> {
    let steps = study.steps;
    let mut text = format!(
        "Sharing, {steps} Euler steps, distance (class right):\n\n\
         | ratio | encoder runs | uniform | optimal |\n|---|---|---|---|\n"
    );
    let first = short(get(results, &shared(steps, Sharing::None))?.seen);
    writeln!(text, "| 0 | {steps} | {first} | {first} |")?;
    for budget in budgets(steps) {
        let uniform = get(results, &shared(steps, Sharing::Uniform(budget)))?;
        let optimal = get(results, &shared(steps, Sharing::Optimal(budget)))?;
        writeln!(
            text,
            "| {:.2} | {budget} | {} | {} |",
            1.0 - budget as f64 / steps as f64,
            short(uniform.seen),
            short(optimal.seen)
        )?;
    }
    Ok(text)
}

fn guidance(study: &DemoStudy, results: &Results) -> Result<String> {
    let mut text = format!("Guidance, {} Euler steps, distance (class right):\n\n", study.sweep_steps);
    let heads: Vec<String> = LOWER_ENDS.iter().map(|from| format!("({from}, 1)")).collect();
    writeln!(text, "| guidance | {} |\n|---{}|", heads.join(" | "), "|---".repeat(heads.len()))?;
    for guidance in SCALES {
        write!(text, "| {guidance:.1} |")?;
        for from in LOWER_ENDS {
            write!(text, " {} |", short(get(results, &swept(study.sweep_steps, guidance, from))?.seen))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn steps(results: &Results) -> Result<String> {
    let mut text = "Steps, guidance 4 in (0, 1), distance (class right):\n\n| steps |".to_owned();
    for (solver, timeshift) in curves() {
        write!(text, " {solver}, shift {timeshift} |")?;
    }
    writeln!(text, "\n|---{}|", "|---".repeat(curves().count()))?;
    for steps in STEPS {
        write!(text, "| {steps} |")?;
        for (solver, timeshift) in curves() {
            let setting = Setting::Stepped(Stepping { steps, solver, timeshift });
            write!(text, " {} |", short(get(results, &setting)?.seen))?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn curves() -> impl Iterator<Item = (&'static str, f64)> {
    SOLVERS.into_iter().flat_map(|solver| TIMESHIFTS.map(|it| (solver, it)))
}

/// Distance against the ratio of shared steps.
fn shares(study: &DemoStudy, results: &Results) -> Vec<Series> {
    let steps = study.steps;
    let point = |budget: usize, sharing: Sharing| {
        let ratio = 1.0 - budget as f64 / steps as f64;
        distance(results, ratio, &shared(steps, sharing))
    };
    let line = |name: &str, sharing: fn(usize) -> Sharing| {
        let first = point(steps, Sharing::None);
        let rest = budgets(steps).into_iter().map(|it| point(it, sharing(it)));
        Series { name: name.to_owned(), points: std::iter::once(first).chain(rest).flatten().collect() }
    };
    vec![line("uniform", Sharing::Uniform), line("optimal", Sharing::Optimal)]
}

/// Distance against guidance for each interval.
fn scales(study: &DemoStudy, results: &Results) -> Vec<Series> {
    let line = |from: f64| {
        let point = |it: f64| distance(results, it, &swept(study.sweep_steps, it, from));
        Series { name: format!("({from}, 1)"), points: SCALES.into_iter().filter_map(point).collect() }
    };
    LOWER_ENDS.map(line).into()
}

/// Distance against the number of steps for each solver and shift.
fn numbers(results: &Results) -> Vec<Series> {
    let line = |(solver, timeshift)| {
        let point = |steps: usize| {
            distance(results, steps as f64, &Setting::Stepped(Stepping { steps, solver, timeshift }))
        };
        let name = format!("{solver}, shift {timeshift}");
        Series { name, points: STEPS.into_iter().filter_map(point).collect() }
    };
    curves().map(line).collect()
}

fn distance(results: &Results, x: f64, setting: &Setting) -> Option<(f64, f64)> {
    results.get(&setting.key()).map(|it| (x, it.seen.distance))
}
