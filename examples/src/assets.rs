//! The weights that come with the examples.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use ddt_adapters::TinyDecoder;
use ddt_demo::{NETWORK as DEMO, TINY_DECODER};
use ddt_files::Checkpoint;
use ddt_model::DdtFile;
use sha2::{Digest, Sha256};

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

/// SHA-256 of the file of the tiny decoder, in lower-case hexadecimal.
#[must_use]
pub fn tiny_decoder_sha256() -> String {
    sha256(TINY_DECODER)
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
