//! Networks that make features of images.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::inception::FoldedInception;
use ddt_adapters::{DinoV2, DinoV2Config, Inception};
use ddt_cuda::CudaInception;
use ddt_files::Checkpoint;
use ddt_metrics::INCEPTION_2015;
use ddt_study::Classifier;

use super::cli::ExtractorChoice;
use super::images::Chunk;
use crate::gpu;
use crate::identity::sha256_of;
use crate::progress::say;

const SIDE: usize = Classifier::SIDE;

/// Name of the classifier that comes with the programs, whose classes are CIFAR-10's in alphabetical order.
pub const CIFAR10_CLASSIFIER: &str = "cifar10-classifier";

/// Makes features of images; the same image gives the same features in any company, on a GPU up to the last bits of
/// sums.
pub trait Extractor {
    /// Its name in reports.
    fn name(&self) -> &str;

    /// What its weights are: their SHA-256.
    fn weights_sha256(&self) -> &str;

    /// Features of the images of a chunk.
    ///
    /// # Errors
    ///
    /// Images that it cannot take; too little memory.
    fn extract(&self, images: &Chunk) -> Result<Extracted>;
}

/// Features of some images, one row an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extracted {
    /// What the Fréchet distance, precision and recall compare.
    pub features: Rows,
    /// What sFID compares, where the network has it.
    pub spatial: Option<Rows>,
    /// What the score takes, where the network classifies.
    pub logits: Option<Rows>,
}

/// Rows of numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// The numbers, row by row.
    pub values: Vec<f32>,
    /// How many stand in a row.
    pub size: usize,
}

impl Rows {
    /// The rows of a tensor of two dimensions.
    ///
    /// # Errors
    ///
    /// Another number of dimensions.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let (_, size) = tensor.dims2()?;
        Ok(Self { values: tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, size })
    }
}

/// Reads the network that was chosen.
///
/// # Errors
///
/// No weights, weights of another network, or a GPU for a network that has no programs for one; each with what to do.
pub fn load(choice: ExtractorChoice, weights: Option<&Path>, device: &str) -> Result<Box<dyn Extractor>> {
    let gpu = gpu::ordinal(device);
    ensure!(
        gpu.is_none() || choice == ExtractorChoice::Inception,
        "--device: expected cpu, for inception alone has programs for GPUs, got {device}"
    );
    let Some(path) = weights else {
        let published = match choice {
            ExtractorChoice::Inception => {
                "pt_inception-2015-12-05-6726825d.pth, which the project pytorch-fid publishes among its releases"
            }
            ExtractorChoice::Dinov2 => "dinov2_vitl14_pretrain.pth, which the project dinov2 publishes",
            ExtractorChoice::Cifar10Classifier => {
                let (network, sha256) = Classifier::load(None)?;
                return Ok(Box::new(ClassifierExtractor { network, sha256 }));
            }
        };
        bail!(
            "--weights: the weights of this extractor do not come with the program; fetch {published}, and name the file with --weights PATH"
        );
    };
    let file = Checkpoint::open(path).context("--weights")?;
    let sha256 = sha256_of(path).context("--weights")?;
    Ok(match choice {
        ExtractorChoice::Inception => {
            let weights = FoldedInception::load(&file, &Device::Cpu).context("--weights")?;
            let network = match gpu {
                None => InceptionOn::Cpu(Box::new(Inception::from_folded(&weights)?)),
                Some(gpu) => {
                    let network = CudaInception::open(gpu, &weights).context("--device")?;
                    say(&format!("making features on {}", network.device_name()));
                    InceptionOn::Gpu(Box::new(network))
                }
            };
            Box::new(InceptionExtractor { network, sha256 })
        }
        ExtractorChoice::Dinov2 => {
            let config = dinov2_config(&file).context("--weights")?;
            let name = dinov2_name(&config);
            let network = DinoV2::load(&config, &file, DType::F32, &Device::Cpu).context("--weights")?;
            Box::new(DinoV2Extractor { name, network, sha256 })
        }
        ExtractorChoice::Cifar10Classifier => {
            let network = Classifier::read(&file).context("--weights")?;
            Box::new(ClassifierExtractor { network, sha256 })
        }
    })
}

struct InceptionExtractor {
    network: InceptionOn,
    sha256: String,
}

/// The same network on either.
enum InceptionOn {
    Cpu(Box<Inception>),
    Gpu(Box<CudaInception>),
}

impl Extractor for InceptionExtractor {
    fn name(&self) -> &str {
        INCEPTION_2015
    }

    fn weights_sha256(&self) -> &str {
        &self.sha256
    }

    fn extract(&self, images: &Chunk) -> Result<Extracted> {
        let pixels = pixels(images)?;
        let it = match &self.network {
            InceptionOn::Cpu(network) => network.forward(&pixels)?,
            InceptionOn::Gpu(network) => network.forward(&pixels)?,
        };
        Ok(Extracted {
            features: Rows::of(&it.pool)?,
            spatial: Some(Rows::of(&it.spatial_flat()?)?),
            logits: Some(Rows::of(&it.logits_unbiased)?),
        })
    }
}

struct DinoV2Extractor {
    name: String,
    network: DinoV2,
    sha256: String,
}

impl Extractor for DinoV2Extractor {
    fn name(&self) -> &str {
        &self.name
    }

    fn weights_sha256(&self) -> &str {
        &self.sha256
    }

    fn extract(&self, images: &Chunk) -> Result<Extracted> {
        let unit = (pixels(images)?.to_dtype(DType::F32)? / 255.0)?;
        let it = self.network.features(&unit)?;
        Ok(Extracted { features: Rows::of(&it.class_token)?, spatial: None, logits: None })
    }
}

struct ClassifierExtractor {
    network: Classifier,
    sha256: String,
}

impl Extractor for ClassifierExtractor {
    fn name(&self) -> &str {
        CIFAR10_CLASSIFIER
    }

    fn weights_sha256(&self) -> &str {
        &self.sha256
    }

    fn extract(&self, images: &Chunk) -> Result<Extracted> {
        let size = (images.height, images.width);
        ensure!(
            size == (SIDE, SIDE),
            "--extractor cifar10-classifier: expected images of {SIDE} x {SIDE} pixels, got {} x {}",
            size.1,
            size.0
        );
        let pixels = ((pixels(images)?.to_dtype(DType::F32)? / 127.5)? - 1.0)?;
        let it = self.network.forward(&pixels)?;
        Ok(Extracted {
            features: Rows::of(&it.features)?,
            spatial: None,
            logits: Some(Rows::of(&it.logits)?),
        })
    }
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
