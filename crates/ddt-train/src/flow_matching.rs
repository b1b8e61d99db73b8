//! The paper's objective: flow matching, and alignment beside it.

use candle_core::{DType, Module, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::ProjectionHead;
use ddt_flow::{TimeSampling, flow_matching_loss};
use ddt_model::{NetworkConfig, VelocityNetwork};
use serde::{Deserialize, Serialize};

use crate::{
    alignment::{AlignmentConfig, Features, alignment_loss},
    data::Batch,
    error::TrainError,
    noisy_batch::NoisyBatch,
    objective::{Loss, Objective, StepAt},
};

/// How times and labels are drawn, and what is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowConfig {
    /// Probability that a label becomes "no class".
    pub label_dropout: f64,
    /// Distribution of training times.
    pub times: TimeSampling,
    /// Respacing of training times, above 1 for more of them near noise.
    pub timeshift: f64,
    /// Alignment; none without.
    pub alignment: Option<AlignmentConfig>,
}

impl FlowConfig {
    /// The paper's (Sec. 4): lognorm times, labels dropped one time in ten, no time shift; alignment as
    /// [`AlignmentConfig::PAPER`] where there are features.
    pub const PAPER: Self =
        Self { label_dropout: 0.1, times: TimeSampling::LogitNormal, timeshift: 1.0, alignment: None };

    /// Whether these settings make a loss.
    ///
    /// # Errors
    /// [`TrainError::Config`] names the first that does not.
    pub fn validate(&self) -> Result<(), TrainError> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let aligned = |good: fn(&AlignmentConfig) -> bool| self.alignment.as_ref().is_none_or(good);
        let checks = [
            ("label_dropout", (0.0..=1.0).contains(&self.label_dropout), "in [0, 1]"),
            ("timeshift", positive(self.timeshift), "a finite number above 0"),
            ("alignment.layer", aligned(|it| it.layer > 0), "1 or more"),
            ("alignment.feature_dim", aligned(|it| (1..=1 << 16).contains(&it.feature_dim)), "1 to 2^16"),
            (
                "alignment.weight",
                aligned(|it| it.weight.is_finite() && it.weight > 0.0),
                "a finite number above 0; leave alignment away for none",
            ),
        ];
        match checks.iter().find(|it| !it.1) {
            None => Ok(()),
            Some((name, _, expected)) => Err(TrainError::Config { name, expected }),
        }
    }
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self::PAPER
    }
}

/// A velocity network with the paper's loss.
///
/// ```text
/// loss = mean (v - (x - eps))^2 + weight * mean (1 - cos(head(h), features))      (Eqs. 3, 5)
/// ```
///
/// `h` is the output of one of the network's blocks; the second term is there with alignment alone.
#[derive(Debug)]
pub struct FlowMatching {
    cfg: FlowConfig,
    network: Box<dyn VelocityNetwork>,
    /// The head of networks that have none of their own.
    head: Option<ProjectionHead>,
}

impl FlowMatching {
    /// Where the head's parameters stand, as in published checkpoints.
    pub const HEAD_PREFIX: &'static str = "diffusion_trainer.proj.0";

    /// The network's parameters under their own names, the head's under [`HEAD_PREFIX`](Self::HEAD_PREFIX).
    ///
    /// A network with a projection head of its own, REPA's, is aligned by that; without alignment its head is left
    /// out. In f32 on the CPU the network is built in its fused form.
    ///
    /// # Errors
    /// [`TrainError`] when settings or sizes make no network, or `vb` lacks a parameter.
    pub fn new(network: &NetworkConfig, cfg: FlowConfig, vb: VarBuilder) -> Result<Self, TrainError> {
        cfg.validate()?;
        let projection = network.projection.filter(|_| cfg.alignment.is_some());
        let network = NetworkConfig { projection, ..network.clone() };
        if projection.is_some_and(|own| cfg.alignment.is_some_and(|it| it.feature_dim != own.feature_size)) {
            let expected = "the feature_size of the network's own projection";
            return Err(TrainError::Config { name: "alignment.feature_dim", expected });
        }
        let fuses = vb.dtype() == DType::F32 && vb.device().is_cpu();
        let built = if fuses { network.build_fused(vb.clone())? } else { network.build(vb.clone())? };
        let d = network.sizes.hidden_size;
        let head = |it: AlignmentConfig| ProjectionHead::new(d, d, it.feature_dim, vb.pp(Self::HEAD_PREFIX));
        let head = cfg.alignment.filter(|_| projection.is_none()).map(head).transpose()?;
        Ok(Self { cfg, head, network: built })
    }

    /// The network.
    pub fn network(&self) -> &dyn VelocityNetwork {
        self.network.as_ref()
    }

    /// How times and labels are drawn, and what is aligned.
    pub fn config(&self) -> &FlowConfig {
        &self.cfg
    }

    /// The loss on a batch that has been drawn.
    ///
    /// # Errors
    /// [`TrainError::Data`] when there is alignment, but no features; [`TrainError::Model`] or
    /// [`TrainError::Candle`] when the batch does not fit the network.
    pub fn noisy_loss(&self, noisy: &NoisyBatch, features: Option<&Features>) -> Result<Loss, TrainError> {
        let NoisyBatch { x_t, t, labels, target } = noisy;
        let head = self.head.as_ref().or(self.network.projection_head());
        let (Some(head), Some(alignment)) = (head, &self.cfg.alignment) else {
            let total = flow_matching_loss(&self.network.forward(x_t, t, labels)?, target)?;
            return Ok(Loss { total, parts: Vec::new() });
        };
        let features = features.ok_or_else(|| TrainError::Data {
            expected: "features to align with, beside the latents".to_owned(),
            got: "latents alone".to_owned(),
        })?;
        let (velocity, hidden) = self.network.forward_with_features(x_t, t, labels, alignment.layer)?;
        let flow = flow_matching_loss(&velocity, target)?;
        let patch = self.network.config().sizes.patch_size;
        let (_, _, h, w) = x_t.dims4()?;
        let aligned = alignment_loss(&head.forward(&hidden)?, &features.on_grid((h / patch, w / patch))?)?;
        let total = (&flow + (&aligned * alignment.weight)?)?;
        Ok(Loss { total, parts: vec![("flow", flow), ("alignment", aligned)] })
    }

    /// The flow-matching loss alone, a scalar.
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
            return Err(TrainError::Data {
                expected: format!("{} channels and labels below {}", sizes.in_channels, sizes.num_classes),
                got: format!("{channels} channels and labels up to {}", max_label.unwrap_or_default()),
            });
        }
        let noisy = NoisyBatch::draw(&self.cfg, sizes.num_classes, batch, at)?;
        self.noisy_loss(&noisy, batch.features.as_ref())
    }
}
