//! The loss that networks are compared by.

use candle_core::Device;
use ddt_flow::{CounterNoise, Purpose, TimeSampling};
use ddt_model::VelocityNetwork;

use crate::{
    data::LatentDataset, epoch_order::Pick, error::TrainError, flow_matching::FlowMatching,
    noisy_batch::NoisyBatch,
};

/// The flow-matching loss over `images` images evenly spread over a dataset (all, if it has fewer), with
/// times and noise that depend on the position alone and no label dropped: comparable between networks.
///
/// Nothing drawn here is ever drawn in training, whatever its seed.
///
/// # Errors
/// [`TrainError::Data`] when `images` is 0; [`TrainError::Model`] or [`TrainError::Candle`] when the data
/// does not fit the network.
pub fn evaluate_loss(
    network: &dyn VelocityNetwork,
    data: &LatentDataset,
    images: usize,
    times: TimeSampling,
    device: &Device,
) -> Result<f64, TrainError> {
    const BATCH: usize = 250;
    // The last two parts of an address: what is drawn, and for which image.
    let at = |what, image| CounterNoise::new(0, Purpose::Evaluation, what, image);
    let (noise, time, posterior) = (0, 1, 2);
    // Evenly spaced: data on disk is often sorted by class.
    let count = images.min(data.len());
    let images: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    if images.is_empty() {
        let expected = "at least 1 image to evaluate".to_owned();
        return Err(TrainError::Data { expected, got: "0".to_owned() });
    }
    let mut sum = 0.0;
    for (i, chunk) in images.chunks(BATCH).enumerate() {
        let first = (i * BATCH) as u64;
        let picks: Vec<Pick> = chunk.iter().map(|&image| Pick { image, flipped: false }).collect();
        let batch = data.batch(&picks, device)?;
        let latents = batch.sampled(|image| at(posterior, first + image))?;
        let draw = |image| times.draw(&at(time, first + image), None);
        let drawn = (0..chunk.len() as u64).map(draw).collect::<Result<_, _>>()?;
        let noisy = NoisyBatch::mix(&latents, drawn, batch.labels, |image| at(noise, first + image))?;
        let loss = FlowMatching::flow_loss(network, &noisy)?;
        sum += f64::from(loss.to_scalar::<f32>()?) * chunk.len() as f64;
    }
    Ok(sum / images.len() as f64)
}
