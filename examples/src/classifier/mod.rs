//! A small convolutional network that tells CIFAR-10's classes apart.
//!
//! Inception's weights have to be downloaded; these come with the programs, and `train_classifier` trains them.
//! Distances in its feature space compare this project's samples with each other and with photos, and with
//! nothing measured elsewhere.

pub mod network;
pub mod objective;
pub mod program;

use std::path::Path;

use anyhow::{Context, Result};
use ddt_files::sha256_file;

use crate::assets;
use network::Classifier;

/// The classifier in a file, or the one that comes with the programs; with the SHA-256 of its file.
///
/// # Errors
///
/// A file that is absent, damaged or holds another network.
pub fn load(path: Option<&Path>) -> Result<(Classifier, String)> {
    match path {
        None => Ok((assets::classifier()?, assets::classifier_sha256())),
        Some(path) => {
            let classifier = Classifier::open(path).context("--classifier")?;
            Ok((classifier, sha256_file(path).context("--classifier")?))
        }
    }
}
