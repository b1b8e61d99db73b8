//! From images to what metrics take, one pass over them in flat memory but for the features themselves.

use anyhow::{Context, Result, ensure};
use ddt_metrics::{
    Duplicates, Features, InceptionScore, InceptionScoreAccumulator, Moments, Statistics, predicted_classes,
};
use sha2::{Digest, Sha256};

use super::bar::Bar;
use super::cache::Cache;
use super::extractor::{Extractor, Rows};
use super::images::Images;

/// Rows of features that are kept for precision and recall, which compare all pairs.
const MAX_KEPT: usize = 100_000;

/// What was measured of one set of images.
#[derive(Debug)]
pub struct Measured {
    /// Mean and covariance of the features.
    pub statistics: Statistics,
    /// The same of the spatial features.
    pub spatial: Option<Statistics>,
    /// The features themselves, unless there are more than 100,000.
    pub features: Option<Rows>,
    /// Numbers in a row of features.
    pub feature_size: usize,
    /// The score, where the network classifies.
    pub score: Option<InceptionScore>,
    /// The class that the network sees in each image.
    pub predicted: Option<Vec<u32>>,
    /// Images seen before.
    pub duplicates: Duplicates,
    /// Height and width, if all images have one.
    pub size: Option<(usize, usize)>,
    /// SHA-256 over the hashes of all chunks.
    pub sha256: String,
    /// Images whose features had to be made.
    pub num_fresh: usize,
}

/// Measures a set of images; `what` they are shows beside the progress.
///
/// # Errors
///
/// Images that cannot be read, a damaged cache, features that are not finite, fewer than two images.
pub fn measure(
    what: &str,
    images: &Images,
    extractor: &dyn Extractor,
    cache: &Cache,
    split_size: usize,
) -> Result<Measured> {
    let mut bar = Bar::start(&format!("features of {what}"), images.num_images(), "images");
    let mut sums: Option<Sums> = None;
    let mut kept = (images.num_images() <= MAX_KEPT).then(Rows::default);
    let mut predicted: Option<Vec<u32>> = None;
    let mut duplicates = Duplicates::new();
    let (mut sizes, mut hasher) = (Vec::new(), Sha256::new());
    let (mut num_images, mut num_fresh) = (0, 0);
    images.for_each_chunk(|chunk| {
        let (made, fresh) = cache.features(extractor, &chunk)?;
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
        hasher.update(chunk.sha256());
        num_images += chunk.num_images();
        num_fresh += if fresh { chunk.num_images() } else { 0 };
        bar.set(num_images);
        Ok(())
    })?;
    drop(bar);
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
        sha256: super::hex(&hasher.finalize()),
        num_fresh,
    })
}

/// What streams.
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
