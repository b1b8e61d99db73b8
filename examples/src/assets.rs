//! The weights that come with the examples.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use ddt_adapters::{TinyDecoder, TinyEncoder};
use ddt_demo::{CLASSIFIER, NETWORK as DEMO, TINY_DECODER, TINY_ENCODER};
use ddt_files::Checkpoint;
use ddt_model::DdtFile;
use sha2::{Digest, Sha256};

use crate::classifier::network::Classifier;

/// The demo: a small DDT trained on CIFAR-10 as latents of the tiny autoencoder.
///
/// # Errors
///
/// None in practice: the file is part of the program and is checked like any other.
pub fn demo() -> Result<DdtFile> {
    DdtFile::from_bytes(DEMO, "the embedded demo").context("the program was built with a damaged demo")
}

/// SHA-256 of the demo's file, in lower-case hexadecimal.
#[must_use]
pub fn demo_sha256() -> String {
    sha256(DEMO)
}

/// SHA-256 of the classifier's file, in lower-case hexadecimal.
#[must_use]
pub fn classifier_sha256() -> String {
    sha256(CLASSIFIER)
}

/// SHA-256 of the file of the tiny decoder, in lower-case hexadecimal.
#[must_use]
pub fn tiny_decoder_sha256() -> String {
    sha256(TINY_DECODER)
}

/// SHA-256 of the file of the tiny encoder, in lower-case hexadecimal.
#[must_use]
pub fn tiny_encoder_sha256() -> String {
    sha256(TINY_ENCODER)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decoder of the tiny autoencoder for 32-channel latents: latents to pixels, 8 times up.
///
/// # Errors
///
/// None in practice, as for [`demo`].
pub fn tiny_decoder() -> Result<TinyDecoder> {
    let file = Checkpoint::from_bytes(TINY_DECODER, "the embedded decoder")?;
    TinyDecoder::load(&file, DType::F32, &Device::Cpu).context("the program was built with a damaged decoder")
}

/// Encoder of the tiny autoencoder for 32-channel latents: pixels to latents, 8 times down.
///
/// # Errors
///
/// None in practice, as for [`demo`].
pub fn tiny_encoder() -> Result<TinyEncoder> {
    let file = Checkpoint::from_bytes(TINY_ENCODER, "the embedded encoder")?;
    TinyEncoder::load(&file, DType::F32, &Device::Cpu).context("the program was built with a damaged encoder")
}

/// The small network that tells CIFAR-10's classes apart, as `train_classifier` made it.
///
/// # Errors
///
/// None in practice, as for [`demo`].
pub fn classifier() -> Result<Classifier> {
    let file = Checkpoint::from_bytes(CLASSIFIER, "the embedded classifier")?;
    Classifier::read(&file).context("the program was built with a damaged classifier")
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use ddt_adapters::LatentSpace;

    use super::*;
    use crate::classifier::network::FEATURES;

    /// Logits of the embedded classifier for [`waves`], by this implementation.
    const WAVE_LOGITS: [[f32; 10]; 2] = [
        [0.989, -1.839, 3.477, 0.025, -2.857, -1.326, 0.029, -0.759, -3.185, -1.547],
        [1.324, -1.957, 3.075, 0.073, -2.689, -0.847, -0.413, -1.394, -2.976, -2.407],
    ];

    #[test]
    fn the_parts_fit_each_other() {
        let demo = demo().unwrap();
        let (cfg, latents) = (demo.config().unwrap(), demo.latents().unwrap());
        assert_eq!(demo.classes().unwrap().len(), cfg.num_classes);
        assert_eq!(latents.autoencoder, "tiny-flux2");
        assert_eq!(tiny_decoder().unwrap().latent_channels(), cfg.in_channels);
        assert_eq!(tiny_encoder().unwrap().latent_channels(), cfg.in_channels);
        assert_eq!(demo_sha256().len(), 64);
    }

    /// A wave of its own frequency and direction in each image and channel, in `[-1, 1]`.
    fn waves() -> Tensor {
        let value = |i: usize| {
            let (image, channel, row, column) = (i / 3072, i / 1024 % 3, i / 32 % 32, i % 32);
            let phase = (1 + image) * row + (2 * channel + 1) * column;
            (phase as f32 * 0.11 + image as f32).sin()
        };
        let values: Vec<f32> = (0..2 * 3072).map(value).collect();
        Tensor::from_vec(values, (2, 3, 32, 32), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_classifier_sees_what_it_saw_when_it_was_made() {
        let seen = classifier().unwrap().forward(&waves()).unwrap();
        assert_eq!(seen.features.dims(), [2, FEATURES]);
        let logits = seen.logits.to_vec2::<f32>().unwrap();
        // Recorded to three decimals; sums in another order differ in the last bits.
        for (got, expected) in logits.iter().flatten().zip(WAVE_LOGITS.iter().flatten()) {
            assert!((got - expected).abs() < 2e-3, "expected {WAVE_LOGITS:?}, got {logits:?}");
        }
        assert!(CLASSIFIER.len() <= 2 << 20);
        let file = Checkpoint::from_bytes(CLASSIFIER, "the embedded classifier").unwrap();
        assert!(file.metadata()["test_accuracy"].parse::<f64>().unwrap() >= 0.75);
    }

    #[test]
    fn the_demo_is_trained() {
        let demo = demo().unwrap();
        let said = |key: &str| demo.metadata().get(key).unwrap_or_else(|| panic!("the demo lacks {key:?}"));
        assert!(said("images_seen").parse::<u64>().unwrap() >= 100_000);
        assert!(said("test_loss").parse::<f64>().unwrap() < 1.6);
        // Measured statistics differ from channel to channel.
        let mean = &demo.latents().unwrap().mean;
        assert!(mean.iter().any(|it| *it != mean[0]), "all means are {}", mean[0]);
    }
}
