//! SHA-256 in lower-case hexadecimal.

use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::FileError;
use crate::source::Source;

/// Returns the SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// [`FileError::Io`] if it cannot be read, [`FileError::Unusable`] for what is no regular file.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut Source::open(path)?.reader_at(0), &mut hashing).map_err(FileError::io("read", path))?;
    Ok(hashing.hex())
}

/// Returns the SHA-256 of bytes in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Hashes what passes through it to another writer.
pub(crate) struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    /// The hash of everything written so far.
    pub(crate) fn hex(self) -> String {
        hex(self.hasher.finalize().as_slice())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_published() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(file.path()).unwrap(), expected);
        assert_eq!(sha256(b"abc"), expected);
        assert!(matches!(sha256_file(Path::new("/does/not/exist")), Err(FileError::Io { .. })));
    }
}
