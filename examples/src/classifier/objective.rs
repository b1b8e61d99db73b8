//! What it is trained for.

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use ddt_train::{Batch, Loss, Objective, StepAt, TrainError};

use crate::classifier::network::{CLASSES, Classifier};

/// Share of the target that is spread over all classes.
const SMOOTHING: f64 = 0.05;

/// The classifier with its cross-entropy.
#[derive(Debug)]
pub struct Classification {
    network: Classifier,
}

impl Classification {
    /// # Errors
    ///
    /// When `vb` lacks a parameter.
    pub fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self { network: Classifier::new(vb)? })
    }
}

impl Objective for Classification {
    type Batch = Batch;

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "network": "cifar10-classifier", "smoothing": SMOOTHING })
    }

    fn loss(&self, batch: &Batch, _: StepAt) -> Result<Loss, TrainError> {
        let logits = self.network.forward(&batch.latents)?.logits;
        let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        let (hit, rest) = (1.0 - SMOOTHING, SMOOTHING / CLASSES as f64);
        let share = |label: &u32, class| (rest + if *label == class { hit } else { 0.0 }) as f32;
        let target: Vec<f32> = batch
            .labels
            .iter()
            .flat_map(|label| (0..CLASSES as u32).map(move |it| share(label, it)))
            .collect();
        let target = Tensor::from_vec(target, (batch.labels.len(), CLASSES), logits.device())?;
        let total = (log_p * target)?.sum(1)?.mean_all()?.neg()?.to_dtype(DType::F32)?;
        Ok(Loss { total, parts: Vec::new() })
    }
}
