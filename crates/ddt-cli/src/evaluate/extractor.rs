//! Networks that compute features of images.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use ddt::{
    Place,
    adapters::{DinoV2, DinoV2Config, Inception, InceptionFeatures, inception::FoldedInception},
    files::Checkpoint,
};
use ddt_dist::Group;
use ddt_metrics::INCEPTION_2015;
use ddt_study::Classifier;

use super::input::Chunk;
use crate::terminal::Terminal;

/// Which network computes features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// TensorFlow's Inception of 2015, which FID, sFID and the Inception Score are defined by
    Inception,
    /// DINOv2, whose Fréchet distance is known as FD-DINOv2
    Dinov2,
    /// The small classifier that comes with the program, for images of CIFAR-10's classes
    Cifar10Classifier,
}

impl Choice {
    /// Checks that the network takes images of this height and width.
    pub(crate) fn check_size(self, (height, width): (usize, usize)) -> Result<()> {
        let side = Classifier::SIDE;
        ensure!(
            self != Self::Cifar10Classifier || (width, height) == (side, side),
            "--extractor cifar10-classifier: expected images of {side} x {side} pixels, got {width} x {height}; use \
             inception or dinov2"
        );
        Ok(())
    }
}

/// CIFAR-10's classes, as the classifier counts them.
const CIFAR10: [&str; Classifier::CLASSES] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// A network that computes features of images; an image has the same features in any company, on a GPU up to the last
/// bits of sums.
pub(crate) struct Extractor {
    /// Its name in reports.
    pub(super) name: String,
    /// SHA-256 of its weights.
    pub(super) weights_sha256: String,
    /// Names of the classes that it tells apart, where samples may have the same.
    pub(super) class_names: &'static [&'static str],
    /// Features of the images of a chunk; an error for images of a size that it does not take.
    pub(super) extract: Extract,
}

/// Images to features.
pub(super) type Extract = Box<dyn Fn(&Chunk) -> Result<Extracted>>;

/// Features of some images, a row per image.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Extracted {
    /// For the Fréchet distance, precision and recall.
    pub(super) features: Rows,
    /// For sFID, where the network has them.
    pub(super) spatial: Option<Rows>,
    /// For the score, where the network classifies.
    pub(super) logits: Option<Rows>,
}

/// Rows of numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rows {
    /// The numbers, row by row.
    pub(super) values: Vec<f32>,
    /// Numbers of a row.
    pub(super) size: usize,
}

impl Rows {
    /// The rows of a tensor `(N, C)`.
    fn of(tensor: &Tensor) -> Result<Self> {
        let (_, size) = tensor.dims2()?;
        Ok(Self { values: tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, size })
    }
}

/// Reads the network that was chosen.
pub(super) fn load(
    choice: Choice,
    weights: Option<&Path>,
    device: Place,
    group: &dyn Group,
    terminal: &Terminal,
) -> Result<Extractor> {
    ensure!(
        device == Place::Cpu || choice == Choice::Inception,
        "--device: expected cpu, for only inception has programs for GPUs, got {device}"
    );
    if choice == Choice::Cifar10Classifier {
        let (network, weights_sha256) =
            Classifier::load(weights).context("--extractor cifar10-classifier")?;
        return Ok(Extractor {
            name: "cifar10-classifier".to_owned(),
            weights_sha256,
            class_names: &CIFAR10,
            extract: Box::new(move |images| classify(&network, images)),
        });
    }
    let Some(path) = weights else {
        let published = match choice {
            Choice::Dinov2 => "dinov2_vitl14_pretrain.pth, which the project dinov2 publishes",
            _ => {
                "pt_inception-2015-12-05-6726825d.pth, which the project pytorch-fid publishes among its releases"
            }
        };
        bail!(
            "--weights: the weights of this extractor do not come with the program; fetch {published}, and name the file with --weights PATH"
        );
    };
    let file = Checkpoint::open(path).context("--weights")?;
    let weights_sha256 = ddt::sha256_of(path).context("--weights")?;
    if choice == Choice::Dinov2 {
        let config = dinov2_config(&file).context("--weights")?;
        let network = DinoV2::load(&config, &file, DType::F32, &Device::Cpu).context("--weights")?;
        let extract = move |images: &Chunk| -> Result<Extracted> {
            let unit = (pixels(images)?.to_dtype(DType::F32)? / 255.0)?;
            let features = Rows::of(&network.features(&unit)?.class_token)?;
            Ok(Extracted { features, spatial: None, logits: None })
        };
        let (name, extract) = (dinov2_name(&config), Box::new(extract));
        return Ok(Extractor { name, weights_sha256, class_names: &[], extract });
    }
    let weights = FoldedInception::load(&file, &Device::Cpu).context("--weights")?;
    let network = inception(&weights, device, group, terminal).context("--device")?;
    let extract = move |images: &Chunk| -> Result<Extracted> {
        let it = network(&pixels(images)?)?;
        Ok(Extracted {
            features: Rows::of(&it.pool)?,
            spatial: Some(Rows::of(&it.spatial_flat()?)?),
            logits: Some(Rows::of(&it.logits_unbiased)?),
        })
    };
    let (name, extract) = (INCEPTION_2015.to_owned(), Box::new(extract));
    Ok(Extractor { name, weights_sha256, class_names: &[], extract })
}

/// Inception on the CPU, or on a GPU.
type Forward = Box<dyn Fn(&Tensor) -> Result<InceptionFeatures>>;

fn inception(
    weights: &FoldedInception,
    device: Place,
    group: &dyn Group,
    terminal: &Terminal,
) -> Result<Forward> {
    match device {
        Place::Cpu => {
            let network = Inception::from_folded(weights)?;
            Ok(Box::new(move |pixels| Ok(network.forward(pixels)?)))
        }
        #[cfg(feature = "cuda")]
        Place::Cuda(number) => {
            let cuda = share_ways(group, ddt::gpu::Cuda::open(number.unwrap_or_default()))?;
            terminal.say(format!("computing features on {}", cuda.name()));
            let network = ddt::gpu::CudaInception::new(&cuda, weights)?;
            Ok(Box::new(move |pixels| Ok(network.forward(pixels)?)))
        }
        #[cfg(not(feature = "cuda"))]
        Place::Cuda(_) => {
            let _ = (group, terminal);
            bail!("expected cpu, where this build computes features, got {device}")
        }
    }
}

/// Gives all ranks the ways of multiplying that rank 0 knows: a feature's last bits depend on them.
#[cfg(feature = "cuda")]
fn share_ways(
    group: &dyn Group,
    opened: Result<ddt::gpu::Cuda, ddt::gpu::CudaError>,
) -> Result<ddt::gpu::Cuda> {
    if group.size() == 1 {
        return Ok(opened?);
    }
    let known = opened.as_ref().map_err(ToString::to_string);
    let known = known.and_then(|it| it.ways().map_err(|it| it.to_string()));
    let told = known.as_ref().map(|it| it.clone().into_bytes()).map_err(|it| it as &dyn std::fmt::Display);
    let ways = ddt_dist::broadcast(group, told)?;
    let cuda = opened?;
    cuda.set_ways(&String::from_utf8_lossy(&ways))?;
    Ok(cuda)
}

fn classify(network: &Classifier, images: &Chunk) -> Result<Extracted> {
    Choice::Cifar10Classifier.check_size((images.height, images.width))?;
    let pixels = ((pixels(images)?.to_dtype(DType::F32)? / 127.5)? - 1.0)?;
    let it = network.forward(&pixels)?;
    Ok(Extracted { features: Rows::of(&it.features)?, spatial: None, logits: Some(Rows::of(&it.logits)?) })
}

/// Pixels as networks take them: `(B, 3, H, W)`, u8.
fn pixels(images: &Chunk) -> Result<Tensor> {
    let shape = (images.num_images(), images.height, images.width, 3);
    Ok(Tensor::from_slice(&images.pixels, shape, &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// The published configuration that a file's tensors have.
fn dinov2_config(file: &Checkpoint) -> Result<DinoV2Config> {
    let width = file.info("cls_token").and_then(|it| it.shape.last().copied());
    let config = match width {
        Some(384) => DinoV2Config::vit_s(),
        Some(768) => DinoV2Config::vit_b(),
        Some(1024) => DinoV2Config::vit_l(),
        Some(1536) => DinoV2Config::vit_g(),
        Some(width) => bail!("expected a DINOv2 of width 384, 768, 1024 or 1536, got {width}"),
        None => {
            bail!("expected the weights of a DINOv2, with a tensor cls_token, got {}", file.path().display())
        }
    };
    Ok(if file.info("register_tokens").is_some() { config.with_registers() } else { config })
}

fn dinov2_name(config: &DinoV2Config) -> String {
    let size = match config.hidden_size {
        384 => "s",
        768 => "b",
        1024 => "l",
        _ => "g",
    };
    let registers = if config.num_registers > 0 { "-reg4" } else { "" };
    format!("dinov2-vit-{size}-14{registers}")
}
