//! Fixtures of the published implementation, run by any executor.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use candle_core::{DType, Device, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_adapters::{
    Decode, InceptionFeatures, KlConfig, KlDecoder, inception::FoldedInception, load_network,
};
use ddt_files::Checkpoint;
use ddt_flow::{Guidance, Step, TimeGrid};
use ddt_model::DdtConfig;
use ddt_sharing::SharingPlan;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    error::GpuError,
    program::{Batch, Precision, Programs},
    run::{EulerOptions, Executor, Run, RunStep, execute},
    step_kind::StepKind,
    weight_source::{WeightSource, from_map},
};

/// Makes an executor of programs and weights.
pub type MakeExecutor<'a> =
    &'a mut dyn FnMut(Programs, WeightSource<'_>) -> Result<Box<dyn Executor>, GpuError>;

/// One output of a fixture, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Name of the output in the fixture.
    pub name: String,
    /// Root mean square of the error over that of the fixture.
    pub relative_rms: f64,
}

/// How a fixture writes the sizes of a network.
#[derive(Deserialize)]
struct Sizes {
    family: String,
    in_channels: usize,
    patch_size: usize,
    hidden_size: usize,
    num_groups: usize,
    num_blocks: usize,
    num_encoder_blocks: usize,
    num_classes: usize,
}

/// How a fixture writes one sampling run.
#[derive(Deserialize)]
struct Case {
    method: String,
    #[serde(default)]
    order: usize,
    steps: usize,
    guidance: f64,
    interval: (f64, f64),
    timeshift: f64,
    last_step: f64,
    recompute: Option<Vec<usize>>,
}

impl Case {
    /// Adams' method of order 1 is Euler's.
    fn is_euler(&self) -> bool {
        self.method == "euler" || (self.method == "adams" && self.order == 1)
    }
}

/// The kind that a fixture states, such as `vae_kl`; `None` for other files.
pub fn kind(path: &Path) -> Option<String> {
    Checkpoint::open(path).ok()?.metadata().get("kind").cloned()
}

/// Runs a fixture of kind `ddt_forward` or `ddt_sample` and compares every output there is a program for:
/// velocities, and the latents of runs with Euler's method.
///
/// # Errors
/// A fixture that cannot be read or is of another kind; whatever the executor fails with.
pub fn fixture(path: &Path, precision: Precision, make: MakeExecutor<'_>) -> Result<Vec<Compared>, GpuError> {
    let file = Fixture::open(path)?;
    match file.file.metadata().get("kind").map(String::as_str) {
        Some("ddt_forward") => file.forward(precision, make),
        Some("ddt_sample") => file.sample(precision, make),
        other => Err(candle_core::Error::Msg(format!(
            "{}: expected a fixture of kind ddt_forward or ddt_sample, got {other:?}",
            path.display()
        ))
        .into()),
    }
}

/// Builds a decoder of these sizes and weights, wherever it computes.
pub type MakeDecoder<'a> = &'a mut dyn FnMut(&KlConfig, VarBuilder<'_>) -> Result<Box<dyn Decode>, GpuError>;

/// Decodes the latents of a fixture of kind `vae_kl` and compares the pixels.
///
/// # Errors
/// A fixture that cannot be read or is of another kind; whatever the decoder fails with.
pub fn kl_fixture(path: &Path, make: MakeDecoder<'_>) -> Result<Compared, GpuError> {
    let file = Checkpoint::open(path).map_err(candle_core::Error::wrap)?;
    let cfg: KlConfig = metadata(&file, "config")?;
    let source = file.with_prefix("model.");
    let decoder = load_network(&source, DType::F32, &Device::Cpu, KlDecoder::reads, |vb| {
        make(&cfg, vb).map_err(candle_core::Error::wrap)
    });
    let decoder = decoder.map_err(candle_core::Error::wrap)?;
    let tensor = |name: &str| file.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap);
    // Those of the fixture are not scaled.
    let latents = (tensor("in.latent")? * cfg.scaling_factor)?;
    compared("out.decoded", &decoder.decode(&latents)?, &tensor("out.decoded")?)
}

/// Extracts features with these weights, wherever it computes.
pub type ExtractFeatures<'a> =
    &'a mut dyn FnMut(&FoldedInception, &Tensor) -> Result<InceptionFeatures, GpuError>;

/// Extracts the features of a fixture of kind `inception`, whose weights are a formula, and compares them.
///
/// # Errors
/// A fixture that cannot be read or is of another kind; whatever the extractor fails with.
pub fn inception_fixture(path: &Path, extract: ExtractFeatures<'_>) -> Result<Vec<Compared>, GpuError> {
    let file = Checkpoint::open(path).map_err(candle_core::Error::wrap)?;
    let tensor = |name: &str| file.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap);
    let got = extract(&FoldedInception::synthetic()?, &tensor("in.image_u8")?)?;
    let outputs = [
        ("out.pool3", &got.pool),
        ("out.spatial7", &got.spatial),
        ("out.logits_unbiased", &got.logits_unbiased),
        ("out.logits", &got.logits),
    ];
    outputs.into_iter().map(|(name, got)| compared(name, got, &tensor(name)?)).collect()
}

struct Fixture {
    file: Checkpoint,
    cfg: DdtConfig,
    weights: BTreeMap<String, Tensor>,
}

impl Fixture {
    fn open(path: &Path) -> Result<Self, GpuError> {
        let file = Checkpoint::open(path).map_err(candle_core::Error::wrap)?;
        let sizes: Sizes = metadata(&file, "config")?;
        if sizes.family != "ddt" {
            let text =
                format!("{}: expected a fixture of family ddt, got {:?}", path.display(), sizes.family);
            return Err(candle_core::Error::Msg(text).into());
        }
        let cfg = DdtConfig {
            in_channels: sizes.in_channels,
            patch_size: sizes.patch_size,
            hidden_size: sizes.hidden_size,
            num_heads: sizes.num_groups,
            num_encoder_blocks: sizes.num_encoder_blocks,
            num_decoder_blocks: sizes.num_blocks.saturating_sub(sizes.num_encoder_blocks),
            num_classes: sizes.num_classes,
        };
        let names: Vec<String> =
            file.names().iter().filter_map(|it| it.strip_prefix("model.")).map(str::to_owned).collect();
        let mut weights = BTreeMap::new();
        for name in names {
            let stored = format!("model.{name}");
            weights.insert(name, file.tensor(&stored, &Device::Cpu).map_err(candle_core::Error::wrap)?);
        }
        Ok(Self { file, cfg, weights })
    }

    fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        self.file.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap)?.to_dtype(DType::F32)
    }

    fn labels(&self, name: &str) -> candle_core::Result<Vec<u32>> {
        let tensor = self.file.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap)?;
        tensor.to_dtype(DType::U32)?.to_vec1()
    }

    /// A call of the network is a step of length 1; times differ between images, so each is a batch of its own.
    fn forward(&self, precision: Precision, make: MakeExecutor<'_>) -> Result<Vec<Compared>, GpuError> {
        let (x, x2) = (self.tensor("in.x")?, self.tensor("in.x2")?);
        let (times, times2) =
            (self.tensor("in.t")?.to_vec1::<f32>()?, self.tensor("in.t2")?.to_vec1::<f32>()?);
        let labels = self.labels("in.y")?;
        let (_, _, height, width) = x.dims4()?;
        let batch = Batch { images: 1, height, width, precision };
        let mut executor = make(Programs::new(&self.cfg, batch)?, &from_map(&self.weights))?;
        let (mut velocity, mut shared) = (Vec::new(), Vec::new());
        for (image, &label) in labels.iter().enumerate() {
            let mut call = |x: &Tensor, t: f32, kind: StepKind| -> Result<Tensor, GpuError> {
                let noise = x.narrow(0, image, 1)?;
                let step = Step { index: 0, t: f64::from(t), t_next: f64::from(t) + 1.0 };
                let steps = vec![RunStep { kind, scalars: [t, 1.0, 1.0, 0.0], step }];
                let labels = vec![label, self.cfg.num_classes as u32];
                let run = Run { batch, noise: noise.flatten_all()?.to_vec1()?, labels, steps };
                executor.start(&run)?;
                executor.step(0, kind)?;
                let moved = Tensor::from_vec(executor.latents()?, noise.dims(), &Device::Cpu)?;
                Ok((moved - noise)?)
            };
            velocity.push(call(&x, times[image], StepKind::Class)?);
            shared.push(call(&x2, times2[image], StepKind::SharedClass)?);
        }
        let compare =
            |name: &str, parts: &[Tensor]| compared(name, &Tensor::cat(parts, 0)?, &self.tensor(name)?);
        Ok(vec![compare("out.velocity", &velocity)?, compare("out.velocity_shared", &shared)?])
    }

    fn sample(&self, precision: Precision, make: MakeExecutor<'_>) -> Result<Vec<Compared>, GpuError> {
        let noise = self.tensor("in.noise")?;
        let labels = self.labels("in.labels")?;
        let cases: Vec<Case> = metadata(&self.file, "cases")?;
        let mut outputs = Vec::new();
        for (i, case) in cases.iter().enumerate().filter(|(_, case)| case.is_euler()) {
            let plan = case.recompute.clone().map(|steps| SharingPlan::new(steps, case.steps)).transpose()?;
            let options = EulerOptions {
                grid: TimeGrid::new(case.steps, Some(case.last_step), case.timeshift)?,
                guidance: Guidance::new(case.guidance, case.interval)?,
                plan: plan.as_ref(),
            };
            let run = Run::new(&self.cfg, precision, &noise, &labels, &options)?;
            let mut executor = make(Programs::new(&self.cfg, run.batch)?, &from_map(&self.weights))?;
            let sampled = execute(&mut *executor, &self.cfg, &run, &mut |_| ControlFlow::Continue(()))?;
            let name = format!("out.{i}");
            outputs.push(compared(&name, &sampled.latents, &self.tensor(&name)?)?);
        }
        Ok(outputs)
    }
}

fn metadata<T: DeserializeOwned>(file: &Checkpoint, key: &str) -> candle_core::Result<T> {
    let Some(text) = file.metadata().get(key) else {
        bail!("{}: expected metadata {key:?}, got none", file.path().display())
    };
    serde_json::from_str(text).map_err(candle_core::Error::wrap)
}

fn compared(name: &str, got: &Tensor, want: &Tensor) -> Result<Compared, GpuError> {
    Ok(Compared { name: name.to_owned(), relative_rms: relative_rms(got, want)? })
}

/// Root mean square of the difference over that of what is wanted.
///
/// # Errors
/// Shapes that differ.
pub fn relative_rms(got: &Tensor, want: &Tensor) -> candle_core::Result<f64> {
    let mean_square = |it: &Tensor| it.to_dtype(DType::F64)?.sqr()?.mean_all()?.to_scalar::<f64>();
    Ok((mean_square(&(got - want)?)? / mean_square(want)?).sqrt())
}
