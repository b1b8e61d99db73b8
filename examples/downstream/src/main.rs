//! A network of one's own sizes, sampled with a sharing plan.

use std::{error::Error, ops::ControlFlow};

use candle_core::{DType, Device};
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_model::{Ddt, DdtConfig, SampleOptions, sample};
use ddt_sharing::SharingPlan;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::Cpu;
    let cfg = DdtConfig {
        in_channels: 4,
        patch_size: 2,
        hidden_size: 64,
        num_heads: 2,
        num_encoder_blocks: 4,
        num_decoder_blocks: 1,
        num_classes: 10,
    };
    // Untrained weights; `Ddt::load` reads a file.
    let network = Ddt::random(&cfg, 0, DType::F32, &device)?.freeze()?;
    let noise = noise_batch(0, &[0, 1], (cfg.in_channels, 16, 16), &device)?;
    let plan = SharingPlan::uniform(20, 5)?;
    let options = SampleOptions {
        grid: TimeGrid::new(20, None, 1.0)?,
        solver: &EULER,
        guidance: Guidance::new(2.0, (0.3, 1.0))?,
        plan: Some(&plan),
    };
    let sampled = sample(&network, &noise, &[3, 7], &options, &mut |_| ControlFlow::Continue(()))?;
    println!(
        "latents {:?} after {} calls of the encoder and {} of the decoder",
        sampled.latents.dims(),
        sampled.calls.encoder,
        sampled.calls.decoder
    );
    Ok(())
}
