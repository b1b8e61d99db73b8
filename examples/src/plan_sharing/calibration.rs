//! The measurement that plans are made from: how alike the self-conditions of every two steps are.

use std::ops::ControlFlow;

use anyhow::{Result, bail};
use candle_core::{DType, Tensor};
use ddt_flow::{CfgBatch, ClassConditional, Decoupled, Evaluation, FlowError, Guided, StepReport, solve};
use ddt_model::{DecoupledNetwork, Labelled, ModelError, SampleOptions};
use ddt_sharing::SimilarityAccumulator;

use crate::generate::{Interrupted, Item, noise};
use crate::job::Job;
use crate::progress::{Cancel, Progress};

/// A network that encodes both halves at every step, guided or not, and leaves each self-condition in the
/// state of its run.
///
/// The published measurement takes both halves at every step, where sampling encodes those that guidance uses;
/// the velocities are those of sampling without sharing.
#[derive(Debug, Clone)]
pub struct Recorded<'a>(pub Labelled<'a>);

/// The self-conditions of one run, one for each step.
#[derive(Debug, Clone, Default)]
pub struct SelfConditions {
    /// `(2B, L, D)` each, class rows before "no class" rows.
    states: Vec<Vec<f32>>,
    /// `D`, 0 before the first step.
    channels: usize,
}

impl SelfConditions {
    /// Keeps the first self-condition of each step; a solver's further stages are at other times.
    fn keep(&mut self, step: usize, z_t: &Tensor) -> candle_core::Result<()> {
        if step < self.states.len() {
            return Ok(());
        }
        self.channels = z_t.dim(candle_core::D::Minus1)?;
        self.states.push(z_t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?);
        Ok(())
    }
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
        state.keep(at.step, &z_t)?;
        self.0.decode(x_t, &[(&self.0.modulations(&z_t)?, 1.0)], rows)
    }
}

/// Adds the images drawn from `noise`, one for each label, to a similarity.
///
/// They are drawn without sharing, whatever the plan of `options`. Holds their self-conditions of all steps,
/// `8 N B L D` bytes: for bounded memory add one image at a time.
///
/// # Shapes
///
/// `noise: (B, C, H, W)` f32.
///
/// # Errors
///
/// [`ModelError`] for a label or noise that does not fit the network, a number of steps other than the
/// statistic's, or what is not finite; [`FlowError::Cancelled`] in it when `on_step` stops the run.
pub fn add_images(
    statistic: &mut SimilarityAccumulator,
    network: &dyn DecoupledNetwork,
    noise: &Tensor,
    labels: &[u32],
    options: &SampleOptions<'_>,
    on_step: &mut dyn FnMut(&StepReport<'_>) -> ControlFlow<()>,
) -> Result<(), ModelError> {
    let recorded = Recorded(Labelled::new(network, labels, noise.device())?);
    let model = Guided { model: recorded, guidance: options.guidance };
    let mut state = SelfConditions::default();
    solve(&model, options.solver, &options.grid, noise, &mut state, on_step)?;
    Ok(statistic.add(&state.states, state.channels)?)
}

/// Measures the self-conditions on some images of a job, one at a time, and shows progress.
///
/// # Errors
///
/// [`Interrupted`] if `cancel` is requested; a network that gives what is no number; more steps than a
/// similarity can have.
pub fn measure(
    job: &Job,
    network: &dyn DecoupledNetwork,
    items: &[Item],
    cancel: &Cancel,
) -> Result<SimilarityAccumulator> {
    let mut statistic = SimilarityAccumulator::new(job.grid.num_steps())?;
    let options =
        SampleOptions { grid: job.grid.clone(), solver: &*job.solver, guidance: job.guidance, plan: None };
    let _stepping = cancel.stepping();
    let mut progress = Progress::start(items.len(), job.grid.num_steps());
    for &item in items {
        let noise = noise(job, &[item])?;
        let added = add_images(&mut statistic, network, &noise, &[item.label], &options, &mut |_| {
            progress.step(1);
            cancel.flow()
        });
        match added {
            // Also where the last step of an image was the current one.
            _ if cancel.is_requested() => return Err(Interrupted.into()),
            Err(ModelError::Flow(error @ FlowError::NonFinite { .. })) => {
                bail!("image {} of class {}: {error}", item.column, item.label)
            }
            other => other?,
        }
    }
    Ok(statistic)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Shape};
    use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
    use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
    use ddt_model::{Ddt, DdtConfig, SeededInit, sample};
    use ddt_sharing::Similarity;

    use super::*;

    const STEPS: usize = 6;
    const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

    /// Initial weights none of which is zero: the true ones would give a velocity of zero.
    struct NonZero(SeededInit);

    impl SimpleBackend for NonZero {
        fn get(
            &self,
            s: Shape,
            name: &str,
            h: Init,
            dtype: DType,
            dev: &Device,
        ) -> candle_core::Result<Tensor> {
            let init = match h {
                Init::Const(mean) => Init::Randn { mean, stdev: 0.2 },
                other => other,
            };
            self.0.get(s, name, init, dtype, dev)
        }

        fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
            self.0.get_unchecked(name, dtype, dev)
        }

        fn contains_tensor(&self, name: &str) -> bool {
            self.0.contains_tensor(name)
        }
    }

    fn network() -> Ddt {
        let cfg = DdtConfig {
            in_channels: 4,
            patch_size: 2,
            hidden_size: 32,
            num_heads: 2,
            num_encoder_blocks: 2,
            num_decoder_blocks: 1,
            num_classes: 10,
        };
        let backend = Box::new(NonZero(SeededInit::new(3)));
        Ddt::new(&cfg, VarBuilder::from_backend(backend, DType::F32, Device::Cpu)).unwrap()
    }

    fn options() -> SampleOptions<'static> {
        SampleOptions {
            grid: TimeGrid::new(STEPS, Some(0.04), 1.0).unwrap(),
            solver: &EULER,
            // Some steps are guided and some are not.
            guidance: Guidance::new(3.0, (0.3, 1.0)).unwrap(),
            plan: None,
        }
    }

    fn noise_of(samples: &[u64]) -> Tensor {
        noise_batch(5, samples, (4, 8, 8), &Device::Cpu).unwrap()
    }

    fn similarity(network: &Ddt, batches: &[(&[u64], &[u32])]) -> Similarity {
        let mut statistic = SimilarityAccumulator::new(STEPS).unwrap();
        for (samples, labels) in batches {
            let noise = noise_of(samples);
            add_images(&mut statistic, network, &noise, labels, &options(), &mut |_| CONTINUE).unwrap();
        }
        statistic.similarity().unwrap()
    }

    fn greatest_difference(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// Sums over tokens of the cosines between the self-conditions of one half, from the encoder alone.
    fn add_cosines(sums: &mut [f64], network: &Ddt, images: &[Tensor], label: u32) {
        let states: Vec<Vec<Vec<f32>>> = images
            .iter()
            .zip(options().grid.times())
            .map(|(x_t, t)| {
                let t = Tensor::new(&[*t as f32], &Device::Cpu).unwrap();
                let label = Tensor::new(&[label], &Device::Cpu).unwrap();
                network.encoder().forward(x_t, &t, &label).unwrap().squeeze(0).unwrap().to_vec2().unwrap()
            })
            .collect();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for (at, sum) in sums.iter_mut().enumerate() {
            let (a, b) = (&states[at / STEPS], &states[at % STEPS]);
            *sum += a.iter().zip(b).map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).sum::<f64>();
        }
    }

    #[test]
    fn is_the_mean_cosine_of_both_halves_at_every_step() {
        let network = network();
        let (samples, labels) = ([11, 12], [3, 7]);
        let mut sums = vec![0.0; STEPS * STEPS];
        for (sample_number, label) in samples.into_iter().zip(labels) {
            let noise = noise_of(&[sample_number]);
            let mut images = vec![noise.clone()];
            sample(&network, &noise, &[label], &options(), &mut |report| {
                images.push(report.latents.clone());
                CONTINUE
            })
            .unwrap();
            add_cosines(&mut sums, &network, &images[..STEPS], label);
            add_cosines(&mut sums, &network, &images[..STEPS], 10);
        }
        // Two images, two halves, 16 tokens.
        let expected: Vec<f64> = sums.iter().map(|sum| sum / 64.0).collect();
        let measured = similarity(&network, &[(&samples[..1], &labels[..1]), (&samples[1..], &labels[1..])]);
        assert!(greatest_difference(measured.values(), &expected) < 1e-5);
        assert!(expected.iter().any(|it| *it < 0.99), "all steps are alike: {expected:?}");
    }

    #[test]
    fn order_and_batches_of_images_do_not_matter() {
        let network = network();
        let one = similarity(&network, &[(&[1], &[0]), (&[2], &[5]), (&[3], &[9])]);
        let other = similarity(&network, &[(&[3], &[9]), (&[1], &[0]), (&[2], &[5])]);
        assert!(greatest_difference(one.values(), other.values()) < 1e-14);
        let together = similarity(&network, &[(&[3, 1, 2], &[9, 0, 5])]);
        assert!(greatest_difference(one.values(), together.values()) < 1e-5);
        let fewer = similarity(&network, &[(&[1], &[0]), (&[2], &[5])]);
        assert!(greatest_difference(one.values(), fewer.values()) > 1e-4);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let network = network();
        let mut statistic = SimilarityAccumulator::new(STEPS + 1).unwrap();
        let mut add = |labels: &[u32]| {
            add_images(&mut statistic, &network, &noise_of(&[0]), labels, &options(), &mut |_| CONTINUE)
        };
        assert!(matches!(add(&[3]), Err(ModelError::Plan(_))));
        let refused = add(&[11]);
        assert!(
            matches!(&refused, Err(ModelError::Input(message)) if message.starts_with("label 11")),
            "{refused:?}"
        );
        assert!(add(&[3, 4]).is_err());
        let stop = &mut |_: &StepReport<'_>| ControlFlow::Break(());
        let stopped = add_images(&mut statistic, &network, &noise_of(&[0]), &[3], &options(), stop);
        assert!(matches!(stopped, Err(ModelError::Flow(FlowError::Cancelled { .. }))));
        assert_eq!(statistic.num_tokens(), 0);
    }
}
