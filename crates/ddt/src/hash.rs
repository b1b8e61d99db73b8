//! SHA-256 of weights.

use std::path::Path;

use ddt_files::sha256_file;

use crate::error::{Context, Result};

/// The SHA-256 of a file in lower-case hexadecimal; in the hub's cache it is the name of what a file links to.
///
/// # Errors
///
/// A file that cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
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
    use ddt_files::sha256;

    use super::*;

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
