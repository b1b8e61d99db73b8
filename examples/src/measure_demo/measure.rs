//! Drawing and comparing.

use std::{fmt, time::Instant};

use anyhow::Result;
use ddt_adapters::{Decode, Encode};
use ddt_flow::{EULER, Guidance, Solver, TimeGrid, solver_by_name};
use ddt_model::SampleOptions;
use ddt_sharing::{Planner, SharingPlan, Similarity};
use serde::{Deserialize, Serialize};

use crate::{
    assets,
    classifier::network::Classifier,
    generate::noise,
    job::{Job, Model},
    measure_demo::{
        Args,
        settings::{DEMO_GUIDANCE, Drawing, Setting, Sharing, Stepping},
    },
    offline_metric::{OfflineMetric, Painter, Seen},
    plan_sharing::{calibration, spread},
    progress::Cancel,
    sampler_args::LAST_STEP,
};

/// Images that the plans are made from, as in the published code.
const CALIBRATION_IMAGES: u32 = 8;

/// What was measured of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the classifier sees.
    #[serde(flatten)]
    pub seen: Seen,
    /// Seconds that drawing took; 0 for photos.
    pub seconds: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:.0} s", self.seen, self.seconds)
    }
}

/// All that measuring needs.
pub struct Bench<'a> {
    args: &'a Args,
    job: &'a Job,
    model: &'a Model,
    cancel: &'a Cancel,
    metric: OfflineMetric<'a>,
    /// Made when the first plan is asked for.
    similarity: Option<Similarity>,
}

impl<'a> Bench<'a> {
    /// Looks at the training photos.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read; [`Interrupted`](crate::generate::Interrupted).
    pub fn new(
        args: &'a Args,
        (job, model): (&'a Job, &'a Model),
        classifier: (Classifier, &str),
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let metric = OfflineMetric::new(&args.photos, classifier, &args.out, cancel)?;
        Ok(Self { args, job, model, cancel, metric, similarity: None })
    }

    /// Measures one setting.
    ///
    /// # Errors
    ///
    /// Photos that cannot be read, a network that gives what is no number;
    /// [`Interrupted`](crate::generate::Interrupted).
    pub fn measure(&mut self, setting: &Setting) -> Result<Measured> {
        let started = Instant::now();
        let count = self.args.images as usize;
        let seen = match setting {
            Setting::Photos => self.metric.photos(count, |pixels| Ok(pixels.clone()))?,
            Setting::Reconstructions => {
                let encoder = assets::tiny_encoder()?;
                let decoder = assets::tiny_decoder()?;
                self.metric.photos(count, |pixels| Ok(decoder.decode(&encoder.encode(pixels)?)?))?
            }
            Setting::Drawn(drawing) => {
                let plan = self.plan(drawing)?;
                let Drawing { steps, guidance, from, .. } = *drawing;
                let grid = TimeGrid::new(steps, Some(LAST_STEP), 1.0)?;
                self.draw(grid, &EULER, Guidance::new(guidance, (from, 1.0))?, plan.as_ref())?
            }
            Setting::Stepped(Stepping { steps, solver, timeshift }) => {
                // Few steps are even ones: a last step of the published length would be far shorter than the others.
                let grid = TimeGrid::new(*steps, None, *timeshift)?;
                let solver = solver_by_name(solver)?;
                self.draw(grid, &*solver, Guidance::new(DEMO_GUIDANCE, (0.0, 1.0))?, None)?
            }
        };
        let drawn = matches!(setting, Setting::Drawn(_) | Setting::Stepped(_));
        Ok(Measured { seen, seconds: if drawn { started.elapsed().as_secs_f64() } else { 0.0 } })
    }

    /// The same noise and classes for every setting.
    fn draw(
        &self,
        grid: TimeGrid,
        solver: &dyn Solver,
        guidance: Guidance,
        plan: Option<&SharingPlan>,
    ) -> Result<Seen> {
        let options = SampleOptions { grid, solver, guidance, plan };
        // Away from the images that plans are made from.
        let items = spread(self.args.images, self.job.weights.classes.len(), 1000);
        let painter = Painter {
            network: &*self.model.network,
            decoder: &*self.model.decoder,
            noise: &|items| noise(self.job, items),
        };
        self.metric.drawn(painter, &items, &options)
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
                        calibration::measure(self.job, self.model.halves()?, &items, self.cancel)?
                            .similarity()?
                    }
                };
                let plan = Planner::new(&similarity, budget)?.plan(budget)?.plan;
                self.similarity = Some(similarity);
                Some(plan)
            }
        })
    }
}
