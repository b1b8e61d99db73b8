//! From images to the inputs of metrics: one pass, in memory that only the features for precision and recall fill.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ddt::{duration_in_words, files::sha256};
use ddt_metrics::{
    Duplicates, Features, InceptionScore, InceptionScoreAccumulator, Moments, Statistics, predicted_classes,
};

use super::{
    cache::Cache,
    extractor::{Extractor, Rows},
    input::Images,
};
use crate::terminal::Terminal;

/// Rows of features that are kept for precision and recall, which compare all pairs.
const MAX_KEPT: usize = 100_000;

/// Measurements of one set of images.
#[derive(Debug)]
pub(super) struct Measured {
    /// Mean and covariance of the features.
    pub(super) statistics: Statistics,
    /// The same of the spatial features.
    pub(super) spatial: Option<Statistics>,
    /// The features themselves, unless there are more than 100,000.
    pub(super) features: Option<Rows>,
    /// Numbers in a row of features.
    pub(super) feature_size: usize,
    /// The score, where the network classifies.
    pub(super) score: Option<InceptionScore>,
    /// The class that the network sees in each image.
    pub(super) predicted: Option<Vec<u32>>,
    /// Images seen before.
    pub(super) duplicates: Duplicates,
    /// Height and width, if all images have one.
    pub(super) size: Option<(usize, usize)>,
    /// SHA-256 over the hashes of all chunks.
    pub(super) sha256: String,
}

/// Measures a set of images; `what` they are is part of the progress.
///
/// # Errors
///
/// Images that cannot be read, a damaged cache, features that are not finite, fewer than two images.
pub(super) fn measure(
    what: &str,
    images: &Images,
    extractor: &dyn Extractor,
    cache: &Cache,
    split_size: usize,
    terminal: &Terminal,
) -> Result<Measured> {
    let (mut meter, started, total) = (terminal.meter(), Instant::now(), images.num_images);
    let mut sums: Option<Sums> = None;
    let mut kept = (total <= MAX_KEPT).then(Rows::default);
    let mut predicted: Option<Vec<u32>> = None;
    let mut duplicates = Duplicates::new();
    let (mut sizes, mut hashes) = (Vec::new(), Vec::new());
    let mut done = 0;
    images.for_each_chunk(|chunk| {
        let made = cache.features(extractor, &chunk)?;
        let features = view(&made.features, chunk.num_images())?;
        let sums = match &mut sums {
            Some(it) => it,
            None => {
                let spatial = made.spatial.as_ref().map(|it| Moments::new(it.size)).transpose()?;
                let logits =
                    made.logits.as_ref().map(|it| InceptionScoreAccumulator::new(it.size, split_size));
                sums.insert(Sums {
                    features: Moments::new(features.size())?,
                    spatial,
                    score: logits.transpose()?,
                })
            }
        };
        sums.features.push(features)?;
        if let (Some(sum), Some(spatial)) = (&mut sums.spatial, &made.spatial) {
            sum.push(view(spatial, chunk.num_images())?)?;
        }
        if let (Some(score), Some(logits)) = (&mut sums.score, &made.logits) {
            let logits = view(logits, chunk.num_images())?;
            score.push(logits)?;
            predicted.get_or_insert_default().extend(predicted_classes(logits));
        }
        if let Some(kept) = &mut kept {
            kept.size = made.features.size;
            kept.values.extend_from_slice(&made.features.values);
        }
        chunk.images().for_each(|it| duplicates.push(it));
        let size = (chunk.height, chunk.width);
        if !sizes.contains(&size) && sizes.len() < 2 {
            sizes.push(size);
        }
        hashes.extend(chunk.sha256());
        done += chunk.num_images();
        meter.show(done as f64 / total as f64, line(what, done, total, started.elapsed()));
        Ok(())
    })?;
    drop(meter);
    let sums = sums.with_context(|| format!("there are no {what}"))?;
    let feature_size = sums.features.size();
    Ok(Measured {
        statistics: sums.features.finish().with_context(|| what.to_owned())?,
        spatial: sums.spatial.map(Moments::finish).transpose()?,
        features: kept,
        feature_size,
        score: sums.score.map(InceptionScoreAccumulator::finish).transpose()?,
        predicted,
        duplicates,
        size: match sizes.as_slice() {
            [only] => Some(*only),
            _ => None,
        },
        sha256: sha256(&hashes),
    })
}

/// Sums over all rows.
struct Sums {
    features: Moments,
    spatial: Option<Moments>,
    score: Option<InceptionScoreAccumulator>,
}

/// Rows of as many images.
fn view(rows: &Rows, num_images: usize) -> Result<Features<'_>> {
    let features = Features::new(&rows.values, rows.size)?;
    ensure!(
        features.num_rows() == num_images,
        "expected features of {num_images} images, got {} rows",
        features.num_rows()
    );
    Ok(features)
}

fn line(what: &str, done: usize, total: usize, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = duration_in_words(total.saturating_sub(done) as f64 / rate);
    format!("features of {what}: {done} of {total} images, {rate:.1} images/s, {left} left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_rate_and_time_left() {
        let line = |done, seconds| line("samples", done, 300, Duration::from_secs(seconds));
        assert_eq!(line(100, 50), "features of samples: 100 of 300 images, 2.0 images/s, 1 min 40 s left");
        assert!(line(0, 0).ends_with("unknown time left"));
        assert!(line(400, 1).ends_with("0 s left"));
    }
}
