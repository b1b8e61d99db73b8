//! The images of an archive as PNG files.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ddt_files::atomic_write;
use ddt_files::npz::{Dtype, NpzFile};
use rayon::prelude::*;

use crate::generate::Interrupted;
use crate::picture::Picture;
use crate::png_file;
use crate::progress::{Cancel, say};

/// Pixels that are in memory at once, in bytes; one image at least.
const AT_ONCE: usize = 16 << 20;

/// Digits of a file's name at least, so that names sort as rows do.
const DIGITS: usize = 6;

/// Writes row `i` of an archive's `arr_0` to `folder/i.png`, with six digits or more; files that are there are
/// replaced.
///
/// Reading compares the archive's checksum.
///
/// # Errors
///
/// An archive that is damaged, or holds no RGB images; a file that cannot be written; [`Interrupted`].
pub fn write(archive: &Path, folder: &Path, cancel: &Cancel) -> Result<()> {
    let file = NpzFile::open(archive)?;
    let images = file.array("arr_0")?;
    images.expect_dtype(Dtype::U8)?;
    images.expect_shape(&[None, None, None, Some(3)])?;
    let &[count, height, width, _] = images.shape() else {
        bail!("expected images, got {:?}", images.shape())
    };
    let digits = count.saturating_sub(1).to_string().len().max(DIGITS);
    say(&format!("writing {count} PNG files to {}", folder.display()));
    let _stepping = cancel.stepping();
    let mut rows = images.rows(0..count)?;
    let image_bytes = rows.row_bytes();
    let mut buffer = vec![0; (AT_ONCE / image_bytes.max(1)).clamp(1, count.max(1)) * image_bytes];
    let mut first = 0;
    while rows.left() > 0 {
        let read = rows.read(&mut buffer)?;
        let pixels = buffer[..read * image_bytes].par_chunks_exact(image_bytes.max(1)).enumerate();
        pixels.try_for_each(|(at, pixels)| -> Result<()> {
            let picture = Picture::from_pixels(width, height, pixels.to_vec())?;
            let bytes = png_file::encode(&picture, &[])?;
            let path = folder.join(format!("{:0digits$}.png", first + at));
            atomic_write(&path, |file| file.write_all(&bytes))
                .context("cannot write a picture; is the disk full?")
        })?;
        first += read;
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
    }
    Ok(())
}
