//! Whether a folder of images is the one it was.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::{error::DataError, image_folder::ImageFolder, read::cannot_read};

/// Bytes read at a time.
const BUFFER: usize = 1 << 16;

impl ImageFolder {
    /// SHA-256, in hex, of what images there are: path below the root, label and size of each, in order.
    ///
    /// Reads no image, so a file rewritten at the same length goes unnoticed; [`ImageFolder::content_hash`]
    /// sees it. Does not depend on where the root is.
    ///
    /// # Errors
    /// [`DataError::Io`] for a file that is gone.
    pub fn identity(&self) -> Result<String, DataError> {
        self.hash_images(|_, _| Ok(()))
    }

    /// SHA-256, in hex, of all that [`ImageFolder::identity`] covers and of every file's bytes.
    ///
    /// # Errors
    /// [`DataError::Io`] for a file that cannot be read.
    pub fn content_hash(&self) -> Result<String, DataError> {
        self.hash_images(|path, hash| {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; BUFFER];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    read => hash.update(&buffer[..read]),
                }
            }
        })
    }

    fn hash_images(
        &self,
        contents: impl Fn(&Path, &mut Sha256) -> io::Result<()>,
    ) -> Result<String, DataError> {
        let mut hash = Sha256::new();
        hash.update((self.num_classes() as u64).to_le_bytes());
        for index in 0..self.len() {
            let path = self.path(index)?;
            let size = path.metadata().map_err(cannot_read(&path))?.len();
            for part in self.relative(index)?.components() {
                hash.update(part.as_os_str().as_encoded_bytes());
                hash.update(b"/");
            }
            // No name holds a zero byte.
            hash.update([0]);
            hash.update(self.label(index)?.map_or(u64::MAX, u64::from).to_le_bytes());
            hash.update(size.to_le_bytes());
            contents(&path, &mut hash).map_err(cannot_read(&path))?;
        }
        Ok(hash.finalize().iter().map(|it| format!("{it:02x}")).collect())
    }
}
