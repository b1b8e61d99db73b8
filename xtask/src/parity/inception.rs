//! Inception, on weights that are a formula.

use anyhow::Result;
use candle_core::Tensor;
use ddt_adapters::{Inception, inception::FoldedInception};

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

const INCEPTION: Tolerance = Tolerance::RelativeRms(1e-4);

/// Features and logits of photos.
pub(crate) fn inception(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let got =
        Inception::from_folded(&FoldedInception::by_formula()?)?.forward(&fixture.tensor("in.image_u8")?)?;
    let compare =
        |name: &str, got: &Tensor| Comparison::tensors(name, got, &fixture.tensor(name)?, INCEPTION);
    Ok(vec![
        compare("out.pool3", &got.pool)?,
        compare("out.spatial7", &got.spatial)?,
        compare("out.logits_unbiased", &got.logits_unbiased)?,
        compare("out.logits", &got.logits)?,
    ])
}
