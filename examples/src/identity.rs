//! What weights are, by name and hash: the same on every machine, wherever their files lie.

use std::path::Path;

use anyhow::{Context, Result};
use ddt_files::sha256_file;
use ddt_model::DdtConfig;

use crate::progress::say;

/// Files above this take long enough to hash that it is said, in bytes.
const LARGE: u64 = 1_000_000_000;

/// The network and the autoencoder that pictures are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the sizes, height x width of the latents, and SHA-256 of the file; what plans are made for.
    pub network: String,
    /// Name and SHA-256 of what decodes.
    pub autoencoder: String,
    /// SHA-256 of the weaker network that guidance leads away from, if there is one.
    pub weaker: Option<String>,
}

/// The preset's name, or sizes in the same style.
#[must_use]
pub fn name_of(config: &DdtConfig) -> String {
    let preset = |name: &String| DdtConfig::preset(name).is_ok_and(|preset| preset == *config);
    DdtConfig::preset_names().into_iter().find(preset).unwrap_or_else(|| {
        let DdtConfig { hidden_size, num_encoder_blocks, num_decoder_blocks, .. } = config;
        format!("ddt-{hidden_size}-{num_encoder_blocks}en{num_decoder_blocks}de")
    })
}

/// The SHA-256 of a file in lower-case hexadecimal; the hub's cache has it as the name of what it links to.
///
/// # Errors
///
/// A file that cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", path.display());
    let target = path.canonicalize().with_context(unreadable)?;
    let in_cache = target.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    let is_hash = |name: &&str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(name) = target.file_name().and_then(|name| name.to_str()).filter(is_hash)
        && in_cache
    {
        return Ok(name.to_owned());
    }
    let size = target.metadata().with_context(unreadable)?.len();
    if size > LARGE {
        say(&format!("taking the SHA-256 of {} ({:.1} GB)", path.display(), size as f64 / 1e9));
    }
    Ok(sha256_file(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_presets_from_others() {
        let xl = DdtConfig::preset("ddt-xl2").unwrap();
        assert_eq!(name_of(&xl), "ddt-xl2-22en6de");
        assert_eq!(name_of(&DdtConfig { in_channels: 32, ..xl }), "ddt-1152-22en6de");
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
        assert!(sha256_of(&plain).unwrap().starts_with("ba7816bf8f01cfea"));
    }
}
