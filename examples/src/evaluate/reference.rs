//! What samples are compared with: images, or the statistics that a file has instead, or both.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ddt_files::npz::NpzFile;
use ddt_metrics::Statistics;

use super::images::Images;

/// A file or folder of either side.
#[derive(Debug)]
pub struct ImageInput {
    /// The images; a file of statistics has none.
    pub images: Option<Images>,
    /// Mean and covariance of features: `mu` and `sigma` of the file.
    pub statistics: Option<Statistics>,
    /// The same of spatial features: `mu_s` and `sigma_s`.
    pub spatial: Option<Statistics>,
}

impl ImageInput {
    /// Looks at a file or folder; of images no more than the header is read.
    ///
    /// # Errors
    ///
    /// Nothing there, or nothing that is images or statistics; each with what was expected.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).with_context(|| {
            format!("cannot read {}; expected an npz file or a folder of images", path.display())
        })?;
        if kind.is_dir() {
            return Ok(Self { images: Some(Images::folder(path)?), statistics: None, spatial: None });
        }
        let file = NpzFile::open(path)?;
        let pair = |mean, covariance| read_statistics(&file, mean, covariance);
        let (statistics, spatial) = (pair("mu", "sigma")?, pair("mu_s", "sigma_s")?);
        if statistics.is_none() && !file.contains("arr_0") {
            let names: Vec<&str> = file.names().collect();
            bail!(
                "expected arr_0 (images), or mu and sigma (statistics) in {}, got {}",
                path.display(),
                if names.is_empty() { "no arrays".to_owned() } else { names.join(", ") }
            );
        }
        let images = file.contains("arr_0").then(|| Images::npz(file)).transpose()?;
        Ok(Self { images, statistics, spatial })
    }
}

/// Mean and covariance, if the file has both.
fn read_statistics(file: &NpzFile, mean: &str, covariance: &str) -> Result<Option<Statistics>> {
    if !file.contains(mean) || !file.contains(covariance) {
        return Ok(None);
    }
    let (means, covariances) = (file.array(mean)?, file.array(covariance)?);
    means.expect_shape(&[None])?;
    let size = means.shape()[0];
    covariances.expect_shape(&[Some(size), Some(size)])?;
    let named = || format!("{mean} and {covariance} in {}", file.path().display());
    let statistics = Statistics::new(means.f64_values()?, covariances.f64_values()?, None);
    Ok(Some(statistics.with_context(named)?))
}
