//! The settings that images depend on, the same in code, image metadata, data sets and results.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::LazyLock,
};

use candle_core::DType;
use ddt_flow::{FlowError, Guidance, NoiseSource, Solver, TimeGrid, solver_by_name};
use ddt_model::{DdtConfig, Family, NetworkConfig};
use serde::{Deserialize, Serialize};

use crate::share::Sharing;

/// Everything that images depend on but their classes and seed.
///
/// Only the weights are needed; every omitted setting has the value that is usual for them. The configuration of a
/// loaded [`Pipeline`](crate::Pipeline) has all settings filled in, with the files' hashes, and names no folder of
/// this machine, so that equal configurations and [`Request`]s mean equal images.
///
/// ```
/// let config: ddt::PipelineConfig = serde_json::from_str(r#"{"weights": {"from": "demo"}, "sharing": "uniform:5,order:1"}"#)?;
/// assert_eq!(config.sharing.to_string(), "uniform:5,order:1");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// The network: `demo`, a [`Release`](ddt_hub::Release) such as `ddt-xl2-256`, or a file.
    pub weights: Source,
    /// Family and sizes of the network; needed for a file that does not state them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// Height and width of an image in pixels; needed for a file that does not say its latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<(usize, usize)>,
    /// Autoencoder that decodes latents into pixels: `auto` (as the network was trained), `tiny-flux2`, `pixels`, a
    /// [`PublishedAutoencoder`](ddt_hub::PublishedAutoencoder) such as `rae-dinov2-b-256`, or a file.
    #[serde(default)]
    pub autoencoder: Source,
    /// A network to guide away from instead of "no class" (autoguidance): a release or a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guiding_network: Option<Source>,
    /// Solver of the steps.
    #[serde(default)]
    pub solver: SolverName,
    /// Times of the steps; 0 is noise, 1 is the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<TimeGrid>,
    /// Scale and interval of classifier-free guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<Guidance>,
    /// Steps that reuse the condition encoder's output.
    #[serde(default)]
    pub sharing: Sharing,
    /// Number type of the network; bf16 is that of Stable Diffusion's and an RAE's decoder too.
    #[serde(default)]
    pub dtype: Dtype,
    /// Device of network and autoencoder.
    #[serde(default)]
    pub device: Place,
    /// Rounding of pixels to whole grey levels.
    #[serde(default, skip_serializing_if = "Rounding::is_nearest")]
    pub rounding: Rounding,
}

/// Steps of [`usual_grid`]; the paper's tables have 250.
pub(crate) const USUAL_STEPS: usize = 50;

/// Last step of [`usual_grid`], as in the published results.
pub(crate) const USUAL_LAST_STEP: f64 = 0.04;

/// Length of the last step before shifting, if it is not that of the others, and shift of the usual grid of a network.
///
/// Latents of an RAE have many more numbers than those of other autoencoders, and noise hides them less: DiT^DH is
/// trained and sampled with times that are shifted by the root of their numbers over 4096.
pub(crate) fn usual_spacing(network: &NetworkConfig) -> (Option<f64>, f64) {
    match (network.family, network.grid_side) {
        (Family::DitDh, Some(side)) => {
            let numbers = network.sizes.in_channels as f64 * (side as f64).powi(2);
            (None, (numbers / 4096.0).sqrt().max(1.0))
        }
        _ => (Some(USUAL_LAST_STEP), 1.0),
    }
}

/// The usual grid of a network with a number of steps that is a constant.
pub(crate) fn usual_grid(network: &NetworkConfig, steps: usize) -> TimeGrid {
    let (last_step, timeshift) = usual_spacing(network);
    TimeGrid::new(steps, last_step, timeshift).unwrap_or_else(|_| grid_of(steps))
}

/// A number of steps that is a constant, with the usual last one.
fn grid_of(steps: usize) -> TimeGrid {
    TimeGrid::new(steps, Some(USUAL_LAST_STEP), 1.0).unwrap_or_else(|_| unreachable!("constants make a grid"))
}

impl PipelineConfig {
    /// The usual settings of these weights: `demo`, a release, or a file.
    #[must_use]
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self {
            weights: Source::new(weights),
            network: None,
            image_size: None,
            autoencoder: Source::default(),
            guiding_network: None,
            solver: SolverName::default(),
            grid: None,
            guidance: None,
            sharing: Sharing::None,
            dtype: Dtype::F32,
            device: Place::Cpu,
            rounding: Rounding::Nearest,
        }
    }

    /// The steps: those of a loaded pipeline are set; without any, a DDT's usual ones.
    #[must_use]
    pub fn grid(&self) -> &TimeGrid {
        static USUAL: LazyLock<TimeGrid> = LazyLock::new(|| grid_of(USUAL_STEPS));
        self.grid.as_ref().unwrap_or(&USUAL)
    }
}

/// A choice of solver, steps and sharing: near to the published sampler, or fast.
///
/// `docs/SHARING.md` has the measured error and speed of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Fidelity {
    /// The published sampler: 250 Euler steps, of DiT^DH 49 that end before data; the encoder at each
    Exact,
    /// 250 Euler steps, forecasts of order 2 at 92 % of them
    High,
    /// 50 steps of adams2, forecasts of order 2 at 75 % of them
    Fast,
}

impl PipelineConfig {
    /// These settings with the solver, steps and sharing of `fidelity`, spaced as is usual for the network of these
    /// settings, or for a DDT if they name none.
    #[must_use]
    pub fn with_fidelity(self, fidelity: Fidelity) -> Self {
        let (steps, solver, ratio) = match fidelity {
            Fidelity::Exact => (250, "euler", None),
            Fidelity::High => (250, "euler", Some(0.92)),
            Fidelity::Fast => (50, "adams2", Some(0.75)),
        };
        let order = Sharing::DEFAULT_ORDER;
        let grid = match &self.network {
            Some(it) if it.family == Family::DitDh && fidelity == Fidelity::Exact => {
                TimeGrid::until(49, 0.999, usual_spacing(it).1).unwrap_or_else(|_| grid_of(steps))
            }
            Some(it) => usual_grid(it, steps),
            None => grid_of(steps),
        };
        Self {
            grid: Some(grid),
            solver: SolverName(solver.to_owned()),
            sharing: ratio.map_or(Sharing::None, |ratio| Sharing::Ratio { ratio, order }),
            ..self
        }
    }
}

/// The batch of a request that names none.
fn usual_batch() -> usize {
    4
}

/// Which images to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Labels; no class twice.
    pub classes: Vec<u32>,
    /// Images of each class.
    pub images_per_class: u32,
    /// Seed of all noise.
    pub seed: u64,
    /// Source of the noise.
    #[serde(default)]
    pub rng: NoiseSource,
    /// Images that are made at once: memory and speed. Sums of another batch size may differ in their last bit.
    #[serde(default = "usual_batch")]
    pub batch: usize,
}

/// One image to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its class.
    pub label: u32,
    /// Its number among the images of its class, below [`Image::PER_CLASS`].
    pub column: u32,
}

impl Image {
    /// Most images of a class; it keeps the noise of one class and the next apart.
    pub const PER_CLASS: u32 = 1_000_000;

    /// The number that, with the seed, fixes the noise: `1000000 label + column`.
    ///
    /// It depends on no other image, so asking for other classes or columns changes no image.
    #[must_use]
    pub fn sample(self) -> u64 {
        u64::from(self.label) * u64::from(Self::PER_CLASS) + u64::from(self.column)
    }

    /// `count` images of classes spread evenly over the table, their columns counted from `first_column`.
    ///
    /// More images than classes take every class in turn.
    #[must_use]
    pub fn spread(count: u32, num_classes: usize, first_column: u32) -> Vec<Self> {
        let (count, num_classes) = (u64::from(count), num_classes.max(1) as u64);
        let image = |index: u64| {
            let label = if count < num_classes { index * num_classes / count } else { index % num_classes };
            Self { label: label as u32, column: first_column + (index / num_classes) as u32 }
        };
        (0..count).map(image).collect()
    }
}

impl Request {
    /// `images_per_class` images of each class from seed 0, four at once.
    #[must_use]
    pub fn new(classes: impl Into<Vec<u32>>, images_per_class: u32) -> Self {
        let (rng, batch) = (NoiseSource::Counter, usual_batch());
        Self { classes: classes.into(), images_per_class, seed: 0, rng, batch }
    }

    /// The images, class by class.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        let row = |&label| (0..self.images_per_class).map(move |column| Image { label, column });
        self.classes.iter().flat_map(row).collect()
    }
}

/// Location of weights, and their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A name or the path of a file; a file that is called like a name is written `./demo`.
    pub from: PathBuf,
    /// SHA-256 of the file in lower-case hexadecimal. If it is given, another file is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Source {
    /// A name or a file, whatever its hash.
    #[must_use]
    pub fn new(from: impl Into<PathBuf>) -> Self {
        Self { from: from.into(), sha256: None }
    }

    /// Whether this names `name`, and no file.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.from == Path::new(name)
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::new("auto")
    }
}

/// A solver that `ddt-flow` knows, by its own name: `euler`, `heun`, `dopri5:1e-6`, ...
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SolverName(String);

impl SolverName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The solver.
    ///
    /// # Errors
    /// None in practice: names are checked when they are made.
    pub fn solver(&self) -> Result<Box<dyn Solver>, FlowError> {
        solver_by_name(&self.0)
    }
}

impl Default for SolverName {
    fn default() -> Self {
        Self("euler".to_owned())
    }
}

impl FromStr for SolverName {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        // Short names become the solver's own.
        Ok(Self(solver_by_name(text)?.name().to_owned()))
    }
}

impl TryFrom<String> for SolverName {
    type Error = FlowError;

    fn try_from(text: String) -> Result<Self, FlowError> {
        text.parse()
    }
}

impl From<SolverName> for String {
    fn from(name: SolverName) -> Self {
        name.0
    }
}

/// A number type to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, the range of f32
    Bf16,
    /// 16 bits, finer, overflows above 65504
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

/// Rounding of pixels to whole grey levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest
    #[default]
    Nearest,
    /// Down, as for the Fréchet distances of DiT^DH
    Down,
}

impl Rounding {
    /// The byte of a pixel `x` in [-1, 1], as a formula.
    #[must_use]
    pub fn formula(self) -> &'static str {
        match self {
            Self::Nearest => "clamp(floor(127.5 x + 128), 0, 255)",
            Self::Down => "clamp(floor(127.5 x + 127.5), 0, 255)",
        }
    }

    fn is_nearest(&self) -> bool {
        *self == Self::Nearest
    }
}

/// The preset's name, or sizes in the same style.
pub(crate) fn name_of(config: &NetworkConfig) -> String {
    let preset = |name: &String| NetworkConfig::preset(name).is_ok_and(|preset| preset == *config);
    NetworkConfig::preset_names().into_iter().find(preset).unwrap_or_else(|| {
        let DdtConfig { hidden_size, num_encoder_blocks, num_decoder_blocks, .. } = config.sizes;
        let family = if config.family == Family::DitDh { "ditdh" } else { "ddt" };
        format!("{family}-{hidden_size}-{num_encoder_blocks}en{num_decoder_blocks}de")
    })
}

/// Whether this build knows GPUs.
const HAS_GPUS: bool = cfg!(any(feature = "cuda", feature = "candle-cuda"));

/// Device: `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, counted from 0; without a number the first, or, of several processes, that of the process's number on
    /// its machine.
    Cuda(Option<usize>),
}

impl Place {
    /// Number of the GPU, 0 where none is said; `None` for the CPU.
    #[must_use]
    pub fn gpu(self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => Some(number.unwrap_or_default()),
        }
    }

    /// The first GPU, where this build and this machine have one, else the CPU.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(feature = "cuda")]
        if ddt_cuda::Cuda::open(0).is_ok() {
            return Self::Cuda(None);
        }
        #[cfg(feature = "candle-cuda")]
        if crate::gpu_device::open(0).is_ok() {
            return Self::Cuda(None);
        }
        Self::Cpu
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = if HAS_GPUS {
            "expected cpu, cuda, or cuda:N for GPU N from 0"
        } else {
            "expected cpu, the only device of this build; for GPUs build with --features cuda, see docs/CUDA.md"
        };
        let place = match (text, text.strip_prefix("cuda:")) {
            ("cpu", _) => Some(Self::Cpu),
            ("cuda", _) => Some(Self::Cuda(None)),
            (_, Some(number)) => number.parse().ok().map(|it| Self::Cuda(Some(it))),
            _ => None,
        };
        let place = place.filter(|it| HAS_GPUS || *it == Self::Cpu);
        place.ok_or_else(|| format!("{expected}; got {text:?}"))
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests;
