//! Cost of previews: the time of a job with and without them.

use anyhow::{Context, Result, ensure};
use ddt_system_tests::{Events, Program, request};
use serde_json::json;

/// Flags of the measurement.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pairs of jobs
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Steps of a job of 16 images
    #[arg(long, default_value_t = 250)]
    steps: usize,
}

/// Prints the median of each pair's ratio, so that a machine that slows down meanwhile slows both.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "expected at least one round");
    let (with, without) = (Program::start(0, &[])?, Program::start(0, &["--no-previews"])?);
    let submission = json!({ "generate": {
        "request": { "classes": [1, 7], "images_per_class": 8, "seed": 0, "batch": 16 },
        "settings": [{ "grid": { "num_steps": args.steps, "last_step": 0.001, "timeshift": 1.0 } }],
    }})
    .to_string();
    let time = |program: &Program| -> Result<(f64, usize)> {
        let address = &program.address;
        let answer = request(address, "POST /api/jobs", "timer", &submission)?;
        let job = answer.json()?["job"].as_str().context("no job")?.to_owned();
        let previews = Events::follow(address, &job)?.filter(|it| it == "preview").count();
        let result = request(address, &format!("GET {job}/result.json"), "timer", "")?.json()?;
        Ok((result["runs"][0]["seconds"].as_f64().context("no time")?, previews))
    };
    let mut ratios = Vec::new();
    for round in 0..=args.rounds {
        // Each goes first every other time.
        let ((fast, none), (slow, some)) = if round % 2 == 0 {
            (time(&without)?, time(&with)?)
        } else {
            let slow = time(&with)?;
            (time(&without)?, slow)
        };
        println!("without previews {fast:.3} s ({none}), with {slow:.3} s ({some} previews)");
        // The first warms up.
        if round > 0 {
            ratios.push(slow / fast);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).context("no ratio")?;
    println!("previews cost {:.1} % (median of {} pairs)", 100.0 * (median - 1.0), ratios.len());
    Ok(())
}
