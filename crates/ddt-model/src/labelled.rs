//! A network bound to the labels of one batch.

use candle_core::{Device, Result, Tensor};
use ddt_flow::{CfgBatch, ClassConditional, Decoupled, Evaluation};

use crate::{
    ddt::Ddt, error::ModelError, network::VelocityNetwork, shared::NetworkCalls,
    velocity_decoder::DecoderModulations,
};

/// A [`Ddt`] and one batch's labels: what sampling wraps.
#[derive(Debug, Clone)]
pub struct Labelled<'a> {
    network: &'a Ddt,
    labels: BatchLabels,
}

impl<'a> Labelled<'a> {
    /// Binds `labels`, one an image.
    ///
    /// # Errors
    /// [`ModelError::Label`] for a label above `num_classes`.
    pub fn new(network: &'a Ddt, labels: &[u32], device: &Device) -> std::result::Result<Self, ModelError> {
        Ok(Self { network, labels: BatchLabels::new(labels, network.config().num_classes, device)? })
    }

    /// The self-condition of the class rows, or of class rows and "no class" rows in that order.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B or 2B, L, D)`.
    pub fn self_condition(&self, x_t: &Tensor, t: f64, rows: CfgBatch) -> Result<Tensor> {
        let labels = self.labels.of(rows);
        let t = Tensor::full(t as f32, labels.dim(0)?, x_t.device())?;
        self.network.encoder().forward(&stack(x_t, rows)?, &t, labels)
    }

    /// What a self-condition means to the decoder.
    pub fn keep(&self, self_condition: &Tensor) -> Result<DecoderModulations> {
        self.network.decoder().modulations(self_condition)
    }
}

impl Decoupled for Labelled<'_> {
    type Cached = DecoderModulations;

    fn encode(&self, x_t: &Tensor, t: f64, rows: CfgBatch) -> Result<DecoderModulations> {
        self.keep(&self.self_condition(x_t, t, rows)?)
    }

    fn decode(&self, x_t: &Tensor, kept: &DecoderModulations, rows: CfgBatch) -> Result<Tensor> {
        let xs = stack(x_t, rows)?;
        let wanted = xs.dim(0)?;
        if kept.rows()? == wanted {
            self.network.decoder().forward_cached(&xs, kept)
        } else {
            self.network.decoder().forward_cached(&xs, &kept.narrow_rows(wanted)?)
        }
    }
}

/// A network of any family and one batch's labels, called whole: what sampling wraps when nothing is kept.
#[derive(Debug, Clone)]
pub(crate) struct Whole<'a> {
    network: &'a dyn VelocityNetwork,
    labels: BatchLabels,
}

impl<'a> Whole<'a> {
    /// As [`Labelled::new`].
    pub(crate) fn new(
        network: &'a dyn VelocityNetwork,
        labels: &[u32],
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let num_classes = network.config().sizes.num_classes;
        Ok(Self { network, labels: BatchLabels::new(labels, num_classes, device)? })
    }
}

impl ClassConditional for Whole<'_> {
    type State = NetworkCalls;

    fn velocities(
        &self,
        x_t: &Tensor,
        at: Evaluation,
        rows: CfgBatch,
        calls: &mut NetworkCalls,
    ) -> Result<Tensor> {
        let labels = self.labels.of(rows);
        let t = Tensor::full(at.t as f32, labels.dim(0)?, x_t.device())?;
        calls.decoder += 1;
        self.network.forward(&stack(x_t, rows)?, &t, labels)
    }
}

/// Labels of one batch, alone and followed by as many "no class".
#[derive(Debug, Clone)]
struct BatchLabels {
    class: Tensor,
    both: Tensor,
}

impl BatchLabels {
    fn new(labels: &[u32], num_classes: usize, device: &Device) -> std::result::Result<Self, ModelError> {
        let out_of_range = |&(_, label): &(usize, &u32)| *label as usize > num_classes;
        if let Some((image, &label)) = labels.iter().enumerate().find(out_of_range) {
            return Err(ModelError::Label { image, label, num_classes });
        }
        let class = Tensor::new(labels, device)?;
        let none = Tensor::full(num_classes as u32, labels.len(), device)?;
        Ok(Self { both: Tensor::cat(&[&class, &none], 0)?, class })
    }

    fn of(&self, rows: CfgBatch) -> &Tensor {
        match rows {
            CfgBatch::Cond => &self.class,
            CfgBatch::CondUncond => &self.both,
        }
    }
}

/// The latents the network sees: class rows, and the same again for "no class".
fn stack(x_t: &Tensor, rows: CfgBatch) -> Result<Tensor> {
    match rows {
        CfgBatch::Cond => Ok(x_t.clone()),
        CfgBatch::CondUncond => Tensor::cat(&[x_t, x_t], 0),
    }
}
