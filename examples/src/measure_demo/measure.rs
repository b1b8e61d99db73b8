//! Drawing and comparing.

use std::{fmt, ops::ControlFlow, time::Instant};

use anyhow::{Context, Result};
use candle_core::{D, Tensor};
use ddt_adapters::{Autoencoder, to_rgb8};
use ddt_data::Rgb8;
use ddt_flow::{Euler, Guidance, TimeGrid};
use ddt_metrics::{Features, Moments, Statistics, frechet_distance};
use ddt_model::{SampleOptions, sample};
use ddt_sharing::{Planner, SharingPlan, Similarity};
use serde::{Deserialize, Serialize};

use crate::{
    assets,
    classifier::network::{Classifier, FEATURES, SIDE},
    generate::{Interrupted, Item, noise},
    job::{Job, Model},
    measure_demo::{
        Args,
        settings::{DEMO_GUIDANCE, Drawing, Setting, Sharing},
    },
    plan_sharing::{calibration, spread},
    progress::{Cancel, Counting},
    sampler_args::LAST_STEP,
    train::{
        photos::{Photos, to_pixels},
        settings::Images,
    },
};

/// Images that are drawn and looked at together.
const BATCH: usize = 100;

/// Images that the plans are made from, as in the published code.
const CALIBRATION_IMAGES: u32 = 8;

/// What was measured of a set of images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Fréchet distance to the training photos, of the classifier's features.
    pub distance: f64,
    /// Share of images whose class the classifier finds likeliest.
    pub accuracy: f64,
    /// Seconds that drawing took; 0 for photos.
    pub seconds: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "distance {:.4}, {:.1} % right, {:.0} s",
            self.distance,
            100.0 * self.accuracy,
            self.seconds
        )
    }
}

/// All that measuring needs.
pub struct Bench<'a> {
    args: &'a Args,
    job: &'a Job,
    model: &'a Model,
    cancel: &'a Cancel,
    classifier: Classifier,
    reference: Statistics,
    /// Made when the first plan is asked for.
    similarity: Option<Similarity>,
}

impl<'a> Bench<'a> {
    /// Reads the classifier and looks at the training photos.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read; [`Interrupted`].
    pub fn new(args: &'a Args, job: &'a Job, model: &'a Model, cancel: &'a Cancel) -> Result<Self> {
        let classifier = Classifier::open(&args.classifier).context("--classifier")?;
        let mut sums = Sums::new()?;
        for_photos(args, "train", usize::MAX, cancel, |pixels, labels| {
            sums.add(&classifier, pixels, labels)
        })?;
        let reference = sums.moments.finish()?;
        Ok(Self { args, job, model, cancel, classifier, reference, similarity: None })
    }

    /// Measures one setting.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read, a network that gives what is no number; [`Interrupted`].
    pub fn measure(&mut self, setting: &Setting) -> Result<Measured> {
        let started = Instant::now();
        let mut sums = Sums::new()?;
        let count = self.args.images as usize;
        match setting {
            Setting::Photos => for_photos(self.args, "test", count, self.cancel, |pixels, labels| {
                sums.add(&self.classifier, pixels, labels)
            })?,
            Setting::Reconstructions => {
                let encoder = assets::tiny_encoder()?;
                let decoder = assets::tiny_decoder()?;
                for_photos(self.args, "test", count, self.cancel, |pixels, labels| {
                    let pixels = decoder.decode(&encoder.encode(pixels)?)?;
                    sums.add(&self.classifier, &rounded(&pixels)?, labels)
                })?;
            }
            Setting::Drawn(drawing) => {
                let plan = self.plan(drawing)?;
                self.draw(drawing, plan.as_ref(), &mut sums)?;
            }
        }
        let accuracy = sums.right as f64 / sums.count.max(1) as f64;
        let distance = frechet_distance(&sums.moments.finish()?, &self.reference)?.distance;
        let seconds =
            if matches!(setting, Setting::Drawn(_)) { started.elapsed().as_secs_f64() } else { 0.0 };
        Ok(Measured { distance, accuracy, seconds })
    }

    /// The same noise and classes for every setting.
    fn draw(&self, drawing: &Drawing, plan: Option<&SharingPlan>, sums: &mut Sums) -> Result<()> {
        let options = SampleOptions {
            grid: TimeGrid::new(drawing.steps, Some(LAST_STEP), 1.0)?,
            solver: &Euler,
            guidance: Guidance::new(drawing.guidance, (drawing.from, 1.0))?,
            plan,
        };
        // Away from the images that plans are made from.
        let items = spread(self.args.images, self.job.weights.classes.len(), 1000);
        let mut progress = Counting::start("drawing", items.len() as u64);
        for (i, items) in items.chunks(BATCH).enumerate() {
            let labels: Vec<u32> = items.iter().map(|it: &Item| it.label).collect();
            let start = noise(self.job, items)?;
            let cancel = self.cancel;
            let sampled = sample(&self.model.network, &start, &labels, &options, &mut |_| {
                if cancel.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if self.cancel.is_requested() {
                return Err(Interrupted.into());
            }
            let pixels = self.model.decoder.decode(&sampled?.latents)?;
            sums.add(&self.classifier, &rounded(&pixels)?, &labels)?;
            progress.reached(((i + 1) * BATCH) as u64);
        }
        Ok(())
    }

    fn plan(&mut self, drawing: &Drawing) -> Result<Option<SharingPlan>> {
        Ok(match drawing.sharing {
            Sharing::None => None,
            Sharing::Uniform(budget) => Some(SharingPlan::uniform_budget(drawing.steps, budget)?),
            Sharing::Optimal(budget) => {
                debug_assert!(
                    drawing.guidance == DEMO_GUIDANCE && drawing.steps == self.job.grid.num_steps()
                );
                let similarity = match self.similarity.take() {
                    Some(it) => it,
                    None => {
                        let items = spread(CALIBRATION_IMAGES, self.job.weights.classes.len(), 0);
                        calibration::measure(self.job, &self.model.network, &items, self.cancel)?
                    }
                };
                let plan = Planner::new(&similarity, budget)?.plan(budget)?.plan;
                self.similarity = Some(similarity);
                Some(plan)
            }
        })
    }
}

/// Sums over a set of images.
struct Sums {
    moments: Moments,
    right: usize,
    count: usize,
}

impl Sums {
    fn new() -> Result<Self> {
        Ok(Self { moments: Moments::new(FEATURES)?, right: 0, count: 0 })
    }

    fn add(&mut self, classifier: &Classifier, pixels: &Tensor, labels: &[u32]) -> Result<()> {
        let seen = classifier.forward(pixels)?;
        let features: Vec<f32> = seen.features.flatten_all()?.to_vec1()?;
        self.moments.push(Features::new(&features, FEATURES)?)?;
        let found: Vec<u32> = seen.logits.argmax(D::Minus1)?.to_vec1()?;
        self.right += found.iter().zip(labels).filter(|it| it.0 == it.1).count();
        self.count += labels.len();
        Ok(())
    }
}

/// Pixels as a file of images would have them: whole numbers of 0 to 255, in `[-1, 1]` again.
fn rounded(pixels: &Tensor) -> Result<Tensor> {
    let images = to_rgb8(pixels)?;
    let side = SIDE as u32;
    let images = images.into_iter().map(|bytes| Rgb8::new(side, side, bytes));
    let images = images.collect::<Result<Vec<_>, _>>()?;
    to_pixels(&images.iter().collect::<Vec<_>>())
}

/// Hands out photos of a split, evenly spread over it.
fn for_photos(
    args: &Args,
    split: &str,
    count: usize,
    cancel: &Cancel,
    mut take: impl FnMut(&Tensor, &[u32]) -> Result<()>,
) -> Result<()> {
    let images = Images {
        train: args.photos.join(split),
        test: None,
        class_list: None,
        size: SIDE as u32,
        flips: false,
        skip_corrupt: false,
        cache: None,
        threads: 2,
    };
    let photos = Photos::open(&images.train, &images).context("--photos")?;
    let len = photos.folder.len();
    let count = count.min(len);
    let mut loader = photos.load((0..count).map(move |i| i * len / count))?;
    let mut progress = Counting::start("looking at photos", count as u64);
    let mut done = 0;
    while done < count {
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
        let samples = loader.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        let labels: Vec<u32> = samples.iter().filter_map(|it| it.label).collect();
        take(&to_pixels(&samples.iter().map(|it| &it.pixels).collect::<Vec<_>>())?, &labels)?;
        done += samples.len();
        progress.reached(done as u64);
    }
    Ok(())
}
