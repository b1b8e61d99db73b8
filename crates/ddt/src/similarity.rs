//! The measurement that sharing plans are made from: how alike the self-conditions of every two steps are.

use std::time::Instant;

use candle_core::{DType, Tensor};
use ddt_flow::{
    CfgBatch, ClassConditional, Decoupled, Evaluation, FlowError, Guided, NoiseSource, StepReport, solve,
};
use ddt_model::{Labelled, ModelError};
use ddt_sharing::{ForecastOrder, OrderPlanner, SimilarityAccumulator, SimilarityFile};

use crate::{
    config::Image,
    error::{Context, Error, Result, invalid},
    pipeline::{Pipeline, Watch},
    progress::Progress,
};

/// A network that encodes class and "no class" at every step, guided or not, and leaves each self-condition in the
/// state of its run.
///
/// The published measurement encodes both at every step, where sampling encodes what guidance uses; the velocities
/// are those of sampling without sharing.
struct Recorded<'a>(Labelled<'a>);

/// The self-conditions of one run, per step.
#[derive(Default)]
struct SelfConditions {
    /// `(2B, L, D)` each, class rows before "no class" rows.
    states: Vec<Vec<f32>>,
    /// `D`, 0 before the first step.
    channels: usize,
}

impl ClassConditional for Recorded<'_> {
    type State = SelfConditions;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        state: &mut SelfConditions,
    ) -> candle_core::Result<Tensor> {
        let z_t = self.0.self_condition(x_t, at.t, CfgBatch::CondUncond)?;
        // The first of each step; a solver's further stages are at other times.
        if at.step >= state.states.len() {
            state.channels = z_t.dim(candle_core::D::Minus1)?;
            state.states.push(z_t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?);
        }
        self.0.decode(x_t, &[(&self.0.modulations(&z_t)?, 1.0)], rows)
    }
}

impl Pipeline {
    /// Measures how alike the self-conditions of the sampling steps are, over some images, one at a time, without
    /// sharing.
    ///
    /// Holds the self-conditions of one image: `8 N L D` bytes.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `watch` breaks; a network without two halves, or on a GPU; more steps than a
    /// similarity can have; a network that produced NaN or infinity, naming the image.
    pub fn measure_similarity(
        &self,
        images: &[Image],
        seed: u64,
        rng: NoiseSource,
        watch: &mut Watch<'_>,
    ) -> Result<SimilarityFile> {
        let Some(network) = self.network().and_then(|it| it.decoupled()) else {
            return invalid("similarity is measured on a network of two halves, on the CPU");
        };
        let options = self.sample_options(None);
        let (total, num_steps, started) = (images.len(), options.grid.num_steps(), Instant::now());
        let mut statistic = SimilarityAccumulator::new(num_steps)?;
        for (finished, image) in images.iter().enumerate() {
            let noise = self.noise(&[*image], seed, rng)?;
            let labelled = Labelled::new(network, &[image.label], noise.device())?;
            let model = Guided { model: Recorded(labelled), guidance: options.guidance };
            let (mut state, mut cancelled) = (SelfConditions::default(), false);
            let mut on_step = |report: &StepReport<'_>| {
                let (step, elapsed) = (report.step.index + 1, started.elapsed());
                let flow =
                    watch(&Progress { finished, total, batch: 1, step, num_steps, elapsed, preview: None });
                cancelled |= flow.is_break();
                flow
            };
            let solved = solve(&model, options.solver, &options.grid, &noise, &mut state, &mut on_step);
            match solved {
                _ if cancelled => return Err(Error::Cancelled),
                Err(error @ FlowError::NonFinite { .. }) => {
                    return Err(error).context(format!("image {} of class {}", image.column, image.label));
                }
                other => drop(other.map_err(ModelError::from)?),
            }
            statistic.add(&state.states, state.channels)?;
        }
        Ok(SimilarityFile {
            made_for: self.made_for().clone(),
            seed,
            images: total,
            similarity: statistic.similarity()?,
            inner_products: Some(statistic.inner_products()?),
        })
    }

    /// The planner of an order for this pipeline's steps and guidance, from a measurement of it.
    ///
    /// # Errors
    /// Those of [`OrderPlanner::new`].
    pub fn planner<'a>(
        &'a self,
        measured: &'a SimilarityFile,
        order: ForecastOrder,
    ) -> Result<OrderPlanner<'a>> {
        let grid = self.config().grid();
        let factors = self.sample_options(None).guidance.step_factors(grid);
        Ok(OrderPlanner::new(measured, grid.times(), &factors, order)?)
    }
}
