//! Bytes of weights, in a file or part of the library, and their SHA-256.

use std::path::{Path, PathBuf};

use ddt_files::{Checkpoint, sha256, sha256_file};
use ddt_model::DdtFile;

use crate::error::{Context, Result};

/// Location of a file's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    Bundled(&'static [u8]),
    File(PathBuf),
}

impl Bytes {
    pub(crate) fn sha256(&self) -> Result<String> {
        match self {
            Self::Bundled(bytes) => Ok(sha256(bytes)),
            Self::File(path) => sha256_of(path),
        }
    }

    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            Self::Bundled(bytes) => Checkpoint::from_bytes(*bytes, "the bundled autoencoder")?,
            Self::File(path) => Checkpoint::open(path)?,
        })
    }
}

/// The demo's weights as a file.
///
/// # Errors
/// A build without the feature `demo`.
pub fn demo_file() -> Result<DdtFile> {
    Ok(DdtFile::from_bytes(demo_network()?, "the demo")?)
}

#[cfg(feature = "demo")]
macro_rules! bundled {
    ($($function:ident $bytes:ident),*) => {$(
        pub(crate) fn $function() -> Result<&'static [u8]> {
            Ok(ddt_demo::$bytes)
        }
    )*};
}

#[cfg(not(feature = "demo"))]
macro_rules! bundled {
    ($($function:ident $bytes:ident),*) => {$(
        pub(crate) fn $function() -> Result<&'static [u8]> {
            crate::error::invalid("the demo weights are not part of this build; build with the feature demo")
        }
    )*};
}

bundled!(demo_network NETWORK, tiny_decoder TINY_DECODER);

/// The SHA-256 of a file in lower-case hexadecimal; in the hub's cache it is the name of what a file links to.
///
/// Of weights in several files, given by their folder or index, it is the hash of the hashes of all of them.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    if path.is_dir() || path.extension().is_some_and(|it| it == "json") {
        let files = Checkpoint::open(path)?;
        let hashes = files.files().into_iter().map(sha256_of_one).collect::<Result<Vec<_>>>()?;
        return Ok(sha256(hashes.concat().as_bytes()));
    }
    sha256_of_one(path)
}

fn sha256_of_one(path: &Path) -> Result<String> {
    let target = path.canonicalize().context(format!("cannot read {}", path.display()))?;
    let in_cache = target.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    let is_hash = |name: &&str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match target.file_name().and_then(|name| name.to_str()).filter(is_hash) {
        Some(name) if in_cache => Ok(name.to_owned()),
        _ => Ok(sha256_file(path)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_is_trained_and_fits_its_autoencoder() {
        let demo = demo_file().unwrap();
        let (cfg, latents) = (demo.config().unwrap(), demo.latents().unwrap());
        assert_eq!(demo.classes().unwrap().len(), cfg.num_classes);
        assert_eq!((latents.autoencoder.as_str(), latents.mean.len()), ("tiny-flux2", cfg.in_channels));
        let said = |key: &str| demo.metadata()[key].parse::<f64>().unwrap();
        assert!(said("images_seen") >= 100_000.0 && said("test_loss") < 1.6);
        // Measured statistics differ from channel to channel.
        assert!(latents.mean.iter().any(|it| *it != latents.mean[0]), "all means are {}", latents.mean[0]);
        let pipeline = crate::Pipeline::demo().unwrap();
        assert_eq!((pipeline.latent_shape().0, pipeline.image_size()), (cfg.in_channels, (32, 32)));
    }

    #[test]
    fn the_cache_knows_the_hash_already() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let name = "ab".repeat(32);
        std::fs::write(blobs.join(&name), b"abc").unwrap();
        assert_eq!(sha256_of(&blobs.join(&name)).unwrap(), name);
        let plain = folder.path().join(&name);
        std::fs::write(&plain, b"abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!([sha256_of(&plain).unwrap(), sha256(b"abc")], [abc, abc]);
        assert!(sha256_of(&folder.path().join("absent")).is_err());
    }
}
