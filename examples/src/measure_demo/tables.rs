//! What came of it, as tables and plots.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::{
    measure_demo::{
        Args, Results,
        measure::Measured,
        settings::{LOWER_ENDS, SCALES, Setting, Sharing, budgets, shared, swept},
    },
    plot::{LinePlot, Series},
};

/// All tables, in Markdown.
///
/// # Errors
///
/// When a setting was not measured.
pub fn markdown(args: &Args, results: &Results) -> Result<String> {
    let get = |it: &Setting| results.get(it).copied().with_context(|| format!("{} is missing", it.key()));
    let (steps, images) = (args.steps, args.images);
    let mut text = format!("{images} images a line, compared with all training photos.\n\n");
    writeln!(text, "| images | distance | class right |\n|---|---|---|")?;
    let lines = [
        ("test photos", Setting::Photos),
        ("test photos through the autoencoder", Setting::Reconstructions),
        ("demo, no guidance", swept(steps, 1.0, 0.0)),
        ("demo, guidance 4 in (0, 1)", shared(steps, Sharing::None)),
    ];
    for (name, setting) in lines {
        let it = get(&setting)?;
        writeln!(text, "| {name} | {:.3} | {:.1} % |", it.distance, 100.0 * it.accuracy)?;
    }
    writeln!(
        text,
        "\nSharing, {steps} Euler steps:\n\n| ratio | encoder runs | speed | distance, uniform | distance, optimal | \
         right, uniform | right, optimal |\n|---|---|---|---|---|---|---|"
    )?;
    let unshared = get(&shared(steps, Sharing::None))?;
    let share = |it: Measured| 100.0 * it.accuracy;
    writeln!(
        text,
        "| 0 | {steps} | 1.00 x | {:.3} | {:.3} | {:.1} % | {:.1} % |",
        unshared.distance,
        unshared.distance,
        share(unshared),
        share(unshared)
    )?;
    for budget in budgets(steps) {
        let uniform = get(&shared(steps, Sharing::Uniform(budget)))?;
        let optimal = get(&shared(steps, Sharing::Optimal(budget)))?;
        writeln!(
            text,
            "| {:.2} | {budget} | {:.2} x | {:.3} | {:.3} | {:.1} % | {:.1} % |",
            1.0 - budget as f64 / steps as f64,
            unshared.seconds / uniform.seconds,
            uniform.distance,
            optimal.distance,
            share(uniform),
            share(optimal)
        )?;
    }
    writeln!(text, "\nGuidance, {} Euler steps, distance (class right):\n", args.sweep_steps)?;
    let heads: Vec<String> = LOWER_ENDS.iter().map(|from| format!("({from}, 1)")).collect();
    writeln!(text, "| guidance | {} |\n|---{}|", heads.join(" | "), "|---".repeat(heads.len()))?;
    for guidance in SCALES {
        write!(text, "| {guidance:.1} |")?;
        for from in LOWER_ENDS {
            let it = get(&swept(args.sweep_steps, guidance, from))?;
            write!(text, " {:.3} ({:.1} %) |", it.distance, 100.0 * it.accuracy)?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

/// Distance against the ratio of shared steps, the shape of the paper's Tab. 4.
///
/// # Errors
///
/// When nothing can be drawn.
pub fn sharing_plot(args: &Args, results: &Results) -> Result<String> {
    let steps = args.steps;
    let point = |budget: usize, sharing: Sharing| {
        let ratio = 1.0 - budget as f64 / steps as f64;
        results.get(&shared(steps, sharing)).map(|it| (ratio, it.distance))
    };
    let line = |name: &str, sharing: fn(usize) -> Sharing| {
        let first = point(steps, Sharing::None);
        let rest = budgets(steps).into_iter().map(|it| point(it, sharing(it)));
        Series { name: name.to_owned(), points: std::iter::once(first).chain(rest).flatten().collect() }
    };
    LinePlot {
        title: "Sharing: distance to training photos",
        x_label: "share of steps that keep the self-condition",
        y_label: "distance of classifier features",
        log_y: false,
        series: &[line("uniform", Sharing::Uniform), line("optimal", Sharing::Optimal)],
    }
    .svg()
}

/// Distance against guidance for each interval, the shape of the paper's Fig. 9.
///
/// # Errors
///
/// When nothing can be drawn.
pub fn guidance_plot(args: &Args, results: &Results) -> Result<String> {
    let line = |from: f64| {
        let point = |guidance: f64| {
            results.get(&swept(args.sweep_steps, guidance, from)).map(|it| (guidance, it.distance))
        };
        Series { name: format!("({from}, 1)"), points: SCALES.into_iter().filter_map(point).collect() }
    };
    LinePlot {
        title: "Guidance: distance to training photos",
        x_label: "guidance",
        y_label: "distance of classifier features",
        log_y: false,
        series: &LOWER_ENDS.map(line),
    }
    .svg()
}
