//! Measures how alike the self-conditions of the sampling steps are, plans where to recompute them, and compares
//! images with and without sharing.
//!
//! Writes `out/share.png`: a row without sharing, a row with evenly spaced recomputes, a row with the best plan.
//!
//! ```sh
//! cargo run --example share
//! ```

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{ops::ControlFlow, time::Instant};

use anyhow::Result;
use candle_core::Tensor;
use ddt::{
    Image, Pipeline,
    flow::NoiseSource,
    picture::{Grid, encode_png},
    sharing::{SharingPlan, optimal_plan, plan_cost},
};

/// Seeds: plans are measured on other images than they are shown with.
const MEASURED: u64 = 1;
const SHOWN: u64 = 0;

/// Steps at which the encoder runs, of the pipeline's 50.
const BUDGET: usize = 10;

fn main() -> Result<()> {
    let pipeline = Pipeline::demo()?;
    let images: Vec<Image> = (0..8).map(|label| Image { label, column: 0 }).collect();

    // The encoder runs at all steps here, and its outputs are compared.
    let measured = pipeline
        .measure_similarity(&images, MEASURED, NoiseSource::Counter, &mut |_| ControlFlow::Continue(()))?;
    let similarity = measured.similarity;
    let cosine = |i, j| similarity.similarity(i, j).unwrap_or_default();
    println!(
        "cosine of the self-conditions of steps 1 and 2: {:.3}, 1 and 50: {:.3}",
        cosine(0, 1),
        cosine(0, 49)
    );

    // The best plan minimises the sum of (1 - cosine) between the self-condition in use and the step's own.
    let steps = similarity.num_steps();
    let even = SharingPlan::uniform_budget(steps, BUDGET)?;
    let best = optimal_plan(&similarity, BUDGET)?;
    println!("best {BUDGET} of {steps} steps: {:?}", best.plan.recompute_steps());
    println!(
        "sum of errors: {:.3} evenly spaced, {:.3} with the best plan",
        plan_cost(&similarity, &even)?,
        best.cost
    );

    let noise = pipeline.noise(&images, SHOWN, NoiseSource::Counter)?;
    let plans = [("every step", None), ("evenly spaced", Some(&even)), ("best plan", Some(&best.plan))];
    let (mut pictures, mut reference) = (Vec::new(), None);
    for (name, plan) in plans {
        let started = Instant::now();
        let sampled = pipeline.sample(&images, &noise, plan, &mut |_| ControlFlow::Continue(()))?;
        let seconds = started.elapsed().as_secs_f64();
        let error = rms(&sampled.latents, reference.get_or_insert(sampled.latents.clone()))?;
        println!(
            "{name}: {} encoder calls, {seconds:.1} s, latents differ by {error:.3}",
            sampled.calls.encoder
        );
        pictures.extend(pipeline.decode(&sampled.latents)?);
    }

    let rows = plans.map(|(name, _)| name.to_owned());
    let page = Grid { row_labels: &rows, images: &pictures, ..Grid::default() }.draw()?;
    std::fs::create_dir_all("out")?;
    std::fs::write("out/share.png", encode_png(&page, &[])?)?;
    println!("wrote out/share.png");
    Ok(())
}

/// Root mean square of the difference; the latents' own is about 1.
fn rms(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.sqr()?.mean_all()?.sqrt()?.to_scalar()?)
}
