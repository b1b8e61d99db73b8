//! A network bound to the labels of one batch.

use candle_core::{Device, Result, Tensor};
use ddt_flow::{Decoupled, Rows};

use crate::{ddt::Ddt, error::ModelError, velocity_decoder::DecoderModulations};

/// A [`Ddt`] and one batch's labels: what sampling wraps.
#[derive(Debug, Clone)]
pub struct Labelled<'a> {
    network: &'a Ddt,
    class: Tensor,
    both: Tensor,
}

impl<'a> Labelled<'a> {
    /// Binds `labels`, one an image.
    ///
    /// # Errors
    /// [`ModelError::Label`] for a label above `num_classes`.
    pub fn new(network: &'a Ddt, labels: &[u32], device: &Device) -> std::result::Result<Self, ModelError> {
        let num_classes = network.config().num_classes;
        let out_of_range = |&(_, label): &(usize, &u32)| *label as usize > num_classes;
        if let Some((image, &label)) = labels.iter().enumerate().find(out_of_range) {
            return Err(ModelError::Label { image, label, num_classes });
        }
        let class = Tensor::new(labels, device)?;
        let none = Tensor::full(num_classes as u32, labels.len(), device)?;
        Ok(Self { network, both: Tensor::cat(&[&class, &none], 0)?, class })
    }

    /// The self-condition of the class rows, or of class rows and "no class" rows in that order.
    ///
    /// # Shapes
    /// `x_t: (B, C, H, W) -> (B or 2B, L, D)`.
    pub fn self_condition(&self, x_t: &Tensor, t: f64, rows: Rows) -> Result<Tensor> {
        let labels = match rows {
            Rows::Class => &self.class,
            Rows::Both => &self.both,
        };
        let t = Tensor::full(t as f32, labels.dim(0)?, x_t.device())?;
        self.network.encoder().forward(&stack(x_t, rows)?, &t, labels)
    }

    /// What a self-condition means to the decoder.
    pub fn keep(&self, self_condition: &Tensor) -> Result<DecoderModulations> {
        self.network.decoder().modulations(self_condition)
    }
}

impl Decoupled for Labelled<'_> {
    type Kept = DecoderModulations;

    fn encode(&self, x_t: &Tensor, t: f64, rows: Rows) -> Result<DecoderModulations> {
        self.keep(&self.self_condition(x_t, t, rows)?)
    }

    fn decode(&self, x_t: &Tensor, kept: &DecoderModulations, rows: Rows) -> Result<Tensor> {
        let xs = stack(x_t, rows)?;
        let wanted = xs.dim(0)?;
        if kept.rows()? == wanted {
            self.network.decoder().forward_kept(&xs, kept)
        } else {
            self.network.decoder().forward_kept(&xs, &kept.narrow_rows(wanted)?)
        }
    }
}

/// The latents the network sees: class rows, and the same again for "no class".
fn stack(x_t: &Tensor, rows: Rows) -> Result<Tensor> {
    match rows {
        Rows::Class => Ok(x_t.clone()),
        Rows::Both => Tensor::cat(&[x_t, x_t], 0),
    }
}
