//! A look at what a run can draw.

use std::{ops::ControlFlow, path::Path};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use ddt_adapters::{Autoencoder, KlConfig, KlDecoder, PixelSpace, to_rgb8};
use ddt_files::Checkpoint;
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_model::{LatentInfo, SampleOptions, VelocityNetwork, sample};
use ddt_train::{FlowMatching, Trainer};

use crate::{
    assets,
    grid::Grid,
    normalized::Normalized,
    picture::Picture,
    png_file,
    train::settings::{AutoencoderSettings, Settings},
};

/// Classes and images of each in a grid, and steps for each.
const CLASSES: usize = 10;
const IMAGES: usize = 8;
const STEPS: usize = 25;

/// What turns a run's latents into pictures.
///
/// # Errors
///
/// Weights that cannot be read.
pub fn decoder(settings: &AutoencoderSettings, info: &LatentInfo) -> Result<Box<dyn Autoencoder>> {
    let inner: Box<dyn Autoencoder> = match settings {
        AutoencoderSettings::SdVae { weights } => {
            let file = Checkpoint::open(weights)?;
            Box::new(KlDecoder::load(&KlConfig::sd_vae_ft_ema(), &file, &Device::Cpu)?)
        }
        AutoencoderSettings::TinyFlux2 => Box::new(assets::tiny_decoder()?),
        AutoencoderSettings::Pixels => Box::new(PixelSpace),
    };
    Ok(Box::new(Normalized::new(inner, info, &Device::Cpu)?))
}

/// The network with the average of this number.
///
/// # Errors
///
/// Too little memory.
pub fn averaged(trainer: &Trainer<FlowMatching>, decay: usize) -> Result<Box<dyn VelocityNetwork>> {
    let config = trainer.objective().network().config();
    let weights = trainer.averaged_weights(decay)?.into_iter().collect();
    Ok(config.build_frozen(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu))?)
}

/// Draws a grid of the first classes with the averaged weights, always from the same noise.
///
/// # Errors
///
/// A network that gives what is no number; a file that cannot be written.
pub fn draw(
    trainer: &Trainer<FlowMatching>,
    settings: &Settings,
    info: &LatentInfo,
    classes: &[String],
    path: &Path,
) -> Result<()> {
    let network = averaged(trainer, 0)?;
    let decoder = decoder(&settings.autoencoder, info)?;
    let shown = classes.len().min(CLASSES);
    let labels: Vec<u32> = (0..shown as u32).flat_map(|it| [it; IMAGES]).collect();
    let samples: Vec<u64> = (0..labels.len() as u64).collect();
    let shape = (network.config().sizes.in_channels, info.height, info.width);
    let options = SampleOptions {
        grid: TimeGrid::new(STEPS, None, 1.0)?,
        solver: &EULER,
        guidance: Guidance::new(settings.watch.guidance, (0.0, 1.0))?,
        plan: None,
    };
    let mut images = Vec::new();
    for (labels, samples) in labels.chunks(IMAGES).zip(samples.chunks(IMAGES)) {
        let noise = noise_batch(trainer.config().seed, samples, shape, &Device::Cpu)?;
        let sampled = sample(network.as_ref(), &noise, labels, &options, &mut |_| ControlFlow::Continue(()))?;
        let latents = sampled.latents;
        let pixels = decoder.decode(&latents)?;
        let (_, _, height, width) = pixels.dims4()?;
        for bytes in to_rgb8(&pixels)? {
            images.push(Picture::from_pixels(width, height, bytes)?);
        }
    }
    let title = format!("after {} images", trainer.images_seen());
    let grid = Grid { row_labels: &classes[..shown], images: &images, title: &title, ..Grid::default() };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    png_file::write(path, &grid.draw()?, &[("images seen", &trainer.images_seen().to_string())])
}
