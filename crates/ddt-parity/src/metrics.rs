//! Fréchet distance, precision and recall, Inception Score.

use anyhow::{Context, Result};
use candle_core::DType;
use ddt_metrics::{Features, Statistics, frechet_distance, inception_score, precision_recall};

use crate::{Comparison, Fixture, Tolerance};

/// Numbers of one tensor, and the length of its rows.
fn rows(fixture: &Fixture, name: &str) -> Result<(Vec<f32>, usize)> {
    let tensor = fixture.tensor(name)?.to_dtype(DType::F32)?;
    let (_, size) = tensor.dims2().with_context(|| name.to_owned())?;
    Ok((tensor.flatten_all()?.to_vec1()?, size))
}

/// One sample against one reference, by features and logits.
pub(crate) fn metrics(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let (samples, reference, logits) =
        (rows(fixture, "in.samples")?, rows(fixture, "in.reference")?, rows(fixture, "in.logits")?);
    let samples = Features::new(&samples.0, samples.1)?;
    let reference = Features::new(&reference.0, reference.1)?;
    let logits = Features::new(&logits.0, logits.1)?;

    let distance = frechet_distance(&Statistics::of(samples)?, &Statistics::of(reference)?)?;
    let overlap = precision_recall(samples, reference, fixture.json("neighbourhood")?)?;
    let score = inception_score(logits, fixture.json("is_split")?)?;
    let compare =
        |name: &str, got: f64| Comparison::numbers(name, &[got], &[fixture.json(name)?], Tolerance::METRIC);
    Ok(vec![
        compare("frechet", distance.distance)?,
        compare("precision", overlap.precision)?,
        compare("recall", overlap.recall)?,
        compare("inception_score", score.mean)?,
    ])
}
