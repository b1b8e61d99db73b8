//! Class label to a vector.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init;

/// A table of `num_classes + 1` rows; the last is "no class".
#[derive(Debug, Clone)]
pub struct LabelEmbed {
    table: Tensor,
}

impl LabelEmbed {
    /// Parameter `embedding_table.weight`.
    pub fn new(num_classes: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let shape = (num_classes + 1, hidden_size);
        Ok(Self { table: vb.pp("embedding_table").get_with_hints(shape, "weight", init::NORMAL_0_02)? })
    }

    /// # Shapes
    /// `labels: (B)`, u32 in `0..=num_classes`, `-> (B, D)`.
    ///
    /// # Errors
    /// On the CPU, when a label is outside the table.
    pub fn forward(&self, labels: &Tensor) -> Result<Tensor> {
        self.table.index_select(labels, 0)
    }
}
