//! The paper's objective: flow matching, with representation alignment beside it.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Module, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_blocks::ProjectionHead;
use ddt_dist::{Alone, Group, MAX_PAYLOAD};
use ddt_flow::{CounterNoise, Purpose, TimeSampling, flow_matching_loss};
use ddt_model::{NetworkConfig, NoisyInput, VelocityNetwork};

use crate::{
    batch::{Batch, Features, NoisyBatch, Pick},
    config::{AlignmentConfig, FlowConfig},
    data::LatentDataset,
    error::TrainError,
    objective::{Loss, Objective, StepAt},
    ranks::{agree_on, bytes_of, numbers},
    trainer::Trainer,
};

/// A velocity network with the paper's loss.
///
/// ```text
/// loss = mean (v - (x - eps))^2 + weight * mean (1 - cos(head(h), features))      (Eqs. 3, 5)
/// ```
///
/// `h` is the output of one of the network's blocks; without alignment there is only the first term.
#[derive(Debug)]
pub struct FlowMatching {
    cfg: FlowConfig,
    network: Box<dyn VelocityNetwork>,
    /// The head of networks that have none of their own.
    head: Option<ProjectionHead>,
}

impl FlowMatching {
    /// Prefix of the projection head's parameters, as in published checkpoints.
    pub const HEAD_PREFIX: &'static str = "diffusion_trainer.proj.0";

    /// The network's parameters have their own names, the head's the prefix [`HEAD_PREFIX`](Self::HEAD_PREFIX).
    ///
    /// A network with a projection head of its own, REPA's, is aligned by that; without alignment its head is left
    /// out. On the CPU the network is built in its fused form.
    ///
    /// # Errors
    /// [`TrainError`] when settings or sizes make no network, or `vb` lacks a parameter.
    pub fn new(network: &NetworkConfig, cfg: FlowConfig, vb: VarBuilder) -> Result<Self, TrainError> {
        cfg.validate()?;
        let projection = network.projection.filter(|_| cfg.alignment.is_some());
        let network = NetworkConfig { projection, ..network.clone() };
        if let (Some(own), Some(it)) = (&projection, &cfg.alignment)
            && it.feature_dim != own.feature_size
        {
            let expected = format!("{}, the network's own projection", own.feature_size);
            return Err(TrainError::setting("alignment.feature_dim", expected, it.feature_dim));
        }
        let built = if vb.device().is_cpu() {
            network.build_fused(vb.clone())?
        } else {
            network.build(vb.clone())?
        };
        let d = network.sizes.hidden_size;
        let head = |it: AlignmentConfig| ProjectionHead::new(d, d, it.feature_dim, vb.pp(Self::HEAD_PREFIX));
        let head = cfg.alignment.filter(|_| projection.is_none()).map(head).transpose()?;
        Ok(Self { cfg, head, network: built })
    }

    /// The network.
    pub fn network(&self) -> &dyn VelocityNetwork {
        self.network.as_ref()
    }

    /// The loss's settings.
    pub fn config(&self) -> &FlowConfig {
        &self.cfg
    }

    /// The loss on a batch with its noise.
    ///
    /// # Errors
    /// [`TrainError::Data`] when alignment lacks features; [`TrainError::Model`] or
    /// [`TrainError::Candle`] when the batch does not fit the network.
    pub fn noisy_loss(&self, noisy: &NoisyBatch, features: Option<&Features>) -> Result<Loss, TrainError> {
        let NoisyBatch { x_t, t, labels, target } = noisy;
        let head = self.head.as_ref().or(self.network.projection_head());
        let (Some(head), Some(alignment)) = (head, &self.cfg.alignment) else {
            let total = flow_matching_loss(&self.network.forward(x_t, t, labels)?, target)?;
            return Ok(Loss { total, parts: Vec::new() });
        };
        let features = features
            .ok_or_else(|| TrainError::data("features to align with, beside the latents", "only latents"))?;
        let (velocity, hidden) =
            self.network.forward_with_features(NoisyInput { x_t, t, labels }, alignment.layer)?;
        let flow = flow_matching_loss(&velocity, target)?;
        let patch = self.network.config().sizes.patch_size;
        let (_, _, h, w) = x_t.dims4()?;
        let aligned = alignment_loss(&head.forward(&hidden)?, &features.on_grid((h / patch, w / patch))?)?;
        let total = (&flow + (&aligned * alignment.weight)?)?;
        Ok(Loss { total, parts: vec![("flow", flow), ("alignment", aligned)] })
    }

    /// Only the flow-matching loss, a scalar.
    pub(crate) fn flow_loss(network: &dyn VelocityNetwork, noisy: &NoisyBatch) -> Result<Tensor, TrainError> {
        Ok(flow_matching_loss(&network.forward(&noisy.x_t, &noisy.t, &noisy.labels)?, &noisy.target)?)
    }
}

impl Objective for FlowMatching {
    type Batch = Batch;

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "network": self.network.config(), "flow": self.cfg })
    }

    fn loss(&self, batch: &Batch, at: StepAt) -> Result<Loss, TrainError> {
        let sizes = &self.network.config().sizes;
        let (channels, max_label) = (batch.latents.dims4()?.1, batch.labels.iter().max().copied());
        if channels != sizes.in_channels || max_label.is_some_and(|it| it as usize >= sizes.num_classes) {
            return Err(TrainError::data(
                format!("{} channels and labels below {}", sizes.in_channels, sizes.num_classes),
                format!("{channels} channels and labels up to {}", max_label.unwrap_or_default()),
            ));
        }
        let noisy = NoisyBatch::draw(&self.cfg, sizes.num_classes, batch, at)?;
        self.noisy_loss(&noisy, batch.features.as_ref())
    }
}

impl Trainer<FlowMatching> {
    /// The network with the averaged weights of this number; see [`Trainer::averaged_weights`]. All ranks call this
    /// together.
    ///
    /// # Errors
    /// [`TrainError::Setting`] when there is no such average; [`TrainError::Candle`] when a tensor cannot be
    /// made.
    pub fn averaged_network(&self, decay: usize) -> Result<Box<dyn VelocityNetwork>, TrainError> {
        self.network_of(self.averaged_weights(decay)?)
    }

    /// The network with such weights.
    pub(crate) fn network_of(
        &self,
        weights: BTreeMap<String, Tensor>,
    ) -> Result<Box<dyn VelocityNetwork>, TrainError> {
        let vb = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, &Device::Cpu);
        Ok(self.objective().network().config().build_frozen(vb)?)
    }
}

/// Alignment loss: one minus the cosine between projected and target tokens.
///
/// ```text
/// mean over rows and tokens of 1 - cos(projected, target)      (Eq. 3)
/// ```
///
/// # Shapes
/// Both `(B, L, F)`; `-> ()`, in f32.
///
/// # Errors
/// When the shapes differ.
pub fn alignment_loss(projected: &Tensor, target: &Tensor) -> candle_core::Result<Tensor> {
    if projected.dims() != target.dims() {
        bail!("expected tokens {:?} to align with, got {:?}", projected.dims(), target.dims());
    }
    let unit = |xs: &Tensor| {
        let xs = xs.to_dtype(DType::F32)?;
        // Inside the root, so that a token of zeros has a gradient.
        xs.broadcast_div(&(xs.sqr()?.sum_keepdim(D::Minus1)? + 1e-16)?.sqrt()?)
    };
    // Targets are constants: no gradient flows there.
    let cosine = (unit(projected)? * unit(&target.detach())?)?.sum(D::Minus1)?;
    1.0 - cosine.mean_all()?
}

/// Flow-matching loss over `images` images evenly spread over a dataset (all, if it has fewer), with times
/// and noise that depend on the position only and no label dropped: comparable between networks.
///
/// Training uses none of these numbers, whatever its seed.
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
    evaluate_loss_in(&Alone, network, data, images, times, device)
}

/// [`evaluate_loss`] by several ranks, each on some of the images; all return the same bits as one.
pub(crate) fn evaluate_loss_in(
    group: &dyn Group,
    network: &dyn VelocityNetwork,
    data: &LatentDataset,
    images: usize,
    times: TimeSampling,
    device: &Device,
) -> Result<f64, TrainError> {
    const BATCH: usize = 250;
    /// Losses that a rank can tell at once.
    const AT_ONCE: usize = MAX_PAYLOAD / size_of::<f64>();
    // The last two parts of an address: quantity and image.
    let at = |what, image| CounterNoise::new(0, Purpose::Evaluation, what, image);
    let (noise, time, posterior) = (0, 1, 2);
    // Evenly spaced: data on disk is often sorted by class.
    let count = images.min(data.len());
    let images: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
    if images.is_empty() {
        return Err(TrainError::data("at least 1 image to evaluate", "0"));
    }
    let sum_of = |(i, chunk): (usize, &[usize])| {
        let first = (i * BATCH) as u64;
        let picks: Vec<Pick> = chunk.iter().map(|&image| Pick { image, flipped: false }).collect();
        let batch = data.batch(&picks, device)?;
        let latents = batch.sampled(|image| at(posterior, first + image))?;
        let drawn = (0..chunk.len() as u64).map(|image| times.draw(&at(time, first + image))).collect();
        let noisy = NoisyBatch::mix(&latents, drawn, batch.labels, |image| at(noise, first + image))?;
        let loss = FlowMatching::flow_loss(network, &noisy)?;
        Ok::<_, TrainError>(f64::from(loss.to_scalar::<f32>()?) * chunk.len() as f64)
    };
    let (rank, ranks) = (group.rank(), group.size());
    let chunks: Vec<(usize, &[usize])> = images.chunks(BATCH).enumerate().collect();
    let mut sum = 0.0;
    for chunks in chunks.chunks(AT_ONCE * ranks) {
        let own = chunks.iter().skip(rank).step_by(ranks).map(|it| sum_of(*it)).collect();
        let say = |it: &Vec<f64>| bytes_of(it.iter().copied());
        let (_, heard) = agree_on::<Vec<f64>, TrainError>(group, own, say)?;
        let heard: Vec<Vec<f64>> = heard.iter().map(|it| numbers(it)).collect();
        // In the order of the images.
        sum =
            (0..chunks.len()).fold(sum, |sum, i| sum + heard[i % ranks].get(i / ranks).unwrap_or(&f64::NAN));
    }
    Ok(sum / images.len() as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn counts_directions_not_lengths() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap().reshape((1, 2, 2)).unwrap();
        let loss = |a: &[f32], b: &[f32]| {
            alignment_loss(&tensor(a), &tensor(b)).unwrap().to_scalar::<f32>().unwrap()
        };
        let xs = [1.0, 2.0, -3.0, 0.5];
        assert!(loss(&xs, &[10.0, 20.0, -3e3, 5e2]).abs() < 1e-6);
        assert!((loss(&xs, &[-1.0, -2.0, 3.0, -0.5]) - 2.0).abs() < 1e-6);
        // One token agrees, the other is orthogonal.
        assert!((loss(&xs, &[1.0, 2.0, 0.5, 3.0]) - 0.5).abs() < 1e-6);
        assert!(alignment_loss(&tensor(&xs), &tensor(&xs).squeeze(0).unwrap()).is_err());
    }
}
