//! Runs a job by the facade, with previews beside it.

use std::{
    ops::ControlFlow,
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ddt::{
    Generated, Image, LinearDecoder, Pipeline, Progress, Request,
    flow::NoiseSource,
    picture::{Rgb8, encode_png},
    relative_errors,
    sharing::ForecastOrder,
};
use serde_json::{Value, json};

use crate::{
    plan::speed,
    serve::{
        job::{Job, Step, lock},
        submission::{Command, Order},
    },
};

/// A decoder that takes longer for an image is replaced by a linear one for previews.
const SLOW: Duration = Duration::from_millis(40);

/// Colour of an image without a preview.
const GREY: [u8; 3] = [128; 3];

/// Makes previews, in a thread of its own and seldom enough to cost the sampler little.
pub(crate) struct Previews {
    /// Between two previews.
    interval: Duration,
    /// Share of the time that previews may take.
    share: f64,
    is_on: bool,
    threads: rayon::ThreadPool,
    linear: Option<LinearDecoder>,
}

impl Previews {
    /// Measures the decoder of previews, and fits a linear one if it is slow.
    ///
    /// # Errors
    /// As [`LinearDecoder::fit`]; no thread.
    pub(crate) fn new(pipeline: &Pipeline, interval: Duration, share: f64, is_on: bool) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let mut previews = Self { interval, share, is_on, threads, linear: None };
        if is_on {
            let noise = pipeline.noise(&[Image { label: 0, column: 0 }], 0, NoiseSource::Counter)?;
            let started = Instant::now();
            previews.threads.install(|| pipeline.decode(&noise))?;
            if started.elapsed() > SLOW {
                previews.linear = Some(LinearDecoder::fit(pipeline)?);
            }
        }
        Ok(previews)
    }

    /// Makes the images of a request, and publishes steps and previews as those of run `run` of `runs`.
    fn generate(
        &self,
        job: &Job,
        (run, runs): (usize, usize),
        pipeline: &Pipeline,
        request: &Request,
    ) -> Result<Generated> {
        let images = request.classes.len() * request.images_per_class as usize;
        // When the next preview is due; none is while one is made.
        let due = Mutex::new(self.is_on.then(Instant::now));
        thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            let due = &due;
            scope.spawn(move || {
                let mut shown = vec![None; images];
                for (finished, latents) in receive {
                    let started = Instant::now();
                    let made = self.threads.install(|| match &self.linear {
                        Some(linear) => linear.images(&latents),
                        None => pipeline.decode(&latents),
                    });
                    // A preview that fails is left out; the run has its own errors.
                    if let Ok(made) = made {
                        for (place, image) in shown.iter_mut().skip(finished).zip(made) {
                            *place = Some(image);
                        }
                        if let Ok(png) = sheet(&shown, request.images_per_class as usize) {
                            job.set_pictures(run, png, Vec::new());
                        }
                    }
                    let pause = started.elapsed().mul_f64(1.0 / self.share);
                    *lock(due) = Some(Instant::now() + pause.max(self.interval));
                }
            });
            let generated = pipeline.generate(request, &mut |progress| {
                job.set_step(step(progress, run, runs));
                let mut due = lock(due);
                if due.is_some_and(|it| it <= Instant::now())
                    && let Ok(Some(latents)) = progress.estimate()
                    && send.send((progress.finished, latents)).is_ok()
                {
                    *due = None;
                }
                drop(due);
                job.flow()
            });
            drop(send);
            Ok(generated?)
        })
    }
}

fn step(progress: &Progress<'_>, run: usize, runs: usize) -> Step {
    let Progress { finished, total, step, num_steps, elapsed, .. } = *progress;
    let share = progress.images() / total.max(1) as f64;
    Step { run, runs, finished, images: total, step, num_steps, share, seconds: elapsed.as_secs_f64() }
}

/// Images in rows as a PNG file, at most all of one size; places without an image are grey.
fn sheet(images: &[Option<Rgb8>], columns: usize) -> Result<Vec<u8>> {
    let size = images.iter().flatten().next().map(|it| (it.width() as usize, it.height() as usize));
    let (width, height) = size.context("no image")?;
    let columns = columns.max(1);
    let mut picture = Rgb8::filled(columns * width, images.len().div_ceil(columns) * height, GREY)?;
    for (at, image) in images.iter().enumerate() {
        if let Some(image) = image {
            picture.paste(at % columns * width, at / columns * height, image, 1);
        }
    }
    Ok(encode_png(&picture, &[])?)
}

/// Runs a job; its result as JSON.
///
/// # Errors
/// Those of the facade; [`ddt::Error::Cancelled`] when the job is to stop.
pub(crate) fn perform(job: &Job, previews: &Previews, command: &Command) -> Result<Value> {
    match &job.order {
        Order::Generate { request, pipelines } => generate(job, request, pipelines, previews, command),
        Order::Measure { pipeline, images, seed, order } => measure(job, pipeline, images, *seed, *order),
    }
}

fn generate(
    job: &Job,
    request: &Request,
    pipelines: &[Pipeline],
    previews: &Previews,
    command: &Command,
) -> Result<Value> {
    let mut runs = Vec::with_capacity(pipelines.len());
    let mut first: Option<Generated> = None;
    let mut comparison = Value::Null;
    for (run, pipeline) in pipelines.iter().enumerate() {
        let generated = previews.generate(job, (run, pipelines.len()), pipeline, request)?;
        let images: Vec<_> = generated.images.iter().cloned().map(Some).collect();
        job.set_pictures(run, sheet(&images, request.images_per_class as usize)?, generated.png()?);
        let report = generated.report;
        let predicted = match pipeline.plan() {
            Some(plan) => speed(pipeline)?.predict(plan)?,
            None => 1.0,
        };
        let name = format!("ddt-{}-{run}", job.id.get(..8).unwrap_or_default());
        runs.push(json!({
            "record": generated.record,
            "seconds": report.elapsed.as_secs_f64(),
            "encoder_calls": report.calls.encoder,
            "decoder_calls": report.calls.decoder,
            "recompute_steps": pipeline.plan().map(|it| it.recompute_steps()),
            "predicted_speedup": predicted,
            "name": name,
            "command": command.line(&generated.record.pipeline, request, &name),
        }));
        match &first {
            None => first = Some(generated),
            Some(first) => comparison = compare(first, &generated)?,
        }
    }
    Ok(json!({ "runs": runs, "comparison": comparison }))
}

/// Distance of the second images from the first, and their speed-up.
fn compare(first: &Generated, second: &Generated) -> Result<Value> {
    let pixels = first.images.iter().zip(&second.images).map(|(a, b)| pixel_error(a, b));
    let seconds = |it: &Generated| it.report.elapsed.as_secs_f64();
    Ok(json!({
        "measured_speedup": seconds(first) / seconds(second).max(1e-9),
        "latent_errors": relative_errors(&second.latents, &first.latents)?,
        "pixel_errors": pixels.collect::<Vec<f64>>(),
    }))
}

/// Root of the mean square difference of the pixels, in [0, 1].
fn pixel_error(a: &Rgb8, b: &Rgb8) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let sum: f64 = a.as_bytes().iter().zip(b.as_bytes()).map(square).sum();
    (sum / a.as_bytes().len().max(1) as f64).sqrt() / 255.0
}

fn measure(
    job: &Job,
    pipeline: &Pipeline,
    images: &[Image],
    seed: u64,
    order: ForecastOrder,
) -> Result<Value> {
    let measured = pipeline.measure_similarity(images, seed, NoiseSource::Counter, &mut |progress| {
        job.set_step(step(progress, 0, 1));
        job.flow()
    })?;
    let planner = pipeline.planner(&measured, order)?;
    let (speed, num_steps) = (speed(pipeline)?, measured.similarity.num_steps());
    let mut plans = Vec::new();
    for budget in planner.budgets() {
        ensure!(job.flow() == ControlFlow::Continue(()), "stopped");
        let best = planner.plan(budget)?;
        plans.push(json!({
            "predicted_speedup": speed.predict(&best.plan)?,
            "mean_error": best.mean_error(),
            "plan": best.plan,
            "even_error": planner.uniform(budget)?.mean_error(),
        }));
    }
    // A map on a screen needs no more digits.
    let rounded = |it: &f64| (it * 1e5).round() / 1e5;
    let similarity: Vec<f64> = measured.similarity.values().iter().map(rounded).collect();
    Ok(json!({
        "made_for": measured.made_for, "seed": seed, "images": measured.images, "order": order,
        "num_steps": num_steps, "similarity": similarity, "plans": plans,
    }))
}
