//! Files to pixels.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::{
    decode::{Limits, decode_rgb8},
    error::{DataError, ImageError},
    rgb8::Rgb8,
};

/// Reads and decodes a file as [`decode_rgb8`] does.
///
/// # Errors
/// [`DataError::Io`] when it cannot be read, [`DataError::NotAFile`] for a pipe or a device, and
/// [`DataError::Image`], which names the file, for what is not an image within the limits.
pub fn read_rgb8(path: &Path, limits: &Limits) -> Result<Rgb8, DataError> {
    let bytes = read_bounded(path, limits.max_bytes)?;
    decode_rgb8(&bytes, limits).map_err(|source| DataError::Image { path: path.to_owned(), source })
}

/// Reads at most `max_bytes`; a larger file is an error before it is in memory.
fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, DataError> {
    let metadata = path.metadata().map_err(cannot_read(path))?;
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() {
        return Err(DataError::NotAFile { path: path.to_owned() });
    }
    let too_long = |bytes| DataError::Image {
        path: path.to_owned(),
        source: ImageError::TooManyBytes { bytes, max_bytes },
    };
    if metadata.len() > max_bytes {
        return Err(too_long(metadata.len()));
    }
    let file = File::open(path).map_err(cannot_read(path))?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // A file that grows meanwhile stays bounded; decoding notices one byte too many.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(cannot_read(path))?;
    Ok(bytes)
}

/// Puts the path into an error of the system's.
pub(crate) fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> DataError + '_ {
    move |source| DataError::Io { path: path.to_owned(), source }
}
