//! Pixels as bytes, and why they are no picture.

use std::{fmt, path::PathBuf};

/// Largest width and height of a picture, in pixels; viewers fail on larger pictures.
pub(crate) const MAX_SIDE: usize = 1 << 15;

/// Largest number of pixels of a picture: 1 GiB of memory.
pub(crate) const MAX_PIXELS: usize = (1 << 30) / 3;

/// Why a picture cannot be made, read or written.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum PictureError {
    /// Bytes that are no image of the given size.
    #[error("expected {width} x {height} x 3 bytes and no empty side, got {bytes} bytes")]
    Shape {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Number of bytes.
        bytes: usize,
    },
    /// A picture that viewers or memory cannot hold.
    #[error(
        "a picture of {width} x {height} pixels: expected 1 to {} pixels a side and at most {} megapixels; \
         use fewer or smaller images",
        MAX_SIDE,
        MAX_PIXELS / 1_000_000
    )]
    Size {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// Images, labels or values that do not fit together.
    #[error("expected {expected}, got {got}")]
    Content {
        /// The content that would fit.
        expected: String,
        /// The value given.
        got: String,
    },
    /// A file that is not a PNG as this crate writes them.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The decoder's or the system's words.
        reason: String,
    },
    /// A PNG encoder that failed.
    #[error("cannot encode the picture as PNG")]
    Encode(#[from] png::EncodingError),
}

/// A [`PictureError::Content`].
pub(crate) fn content(expected: impl Into<String>, got: impl Into<String>) -> PictureError {
    PictureError::Content { expected: expected.into(), got: got.into() }
}

/// An image of 8-bit red, green and blue, row by row without padding (height, width, 3).
///
/// Both sides are at least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb8 {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
}

impl Rgb8 {
    /// Takes `height * width * 3` bytes.
    ///
    /// # Errors
    /// [`PictureError::Shape`] for another number of bytes or a side of zero.
    pub fn new(width: u32, height: u32, bytes: Vec<u8>) -> Result<Self, PictureError> {
        let expected = (width as usize).checked_mul(height as usize).and_then(|it| it.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(bytes.len()) {
            return Err(PictureError::Shape { width, height, bytes: bytes.len() });
        }
        Ok(Self { width, height, bytes })
    }

    /// An image of one colour.
    ///
    /// # Errors
    /// [`PictureError::Size`] if it is empty, above 32768 pixels a side or above 1 GiB.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Result<Self, PictureError> {
        check_size(width, height)?;
        Self::new(width as u32, height as u32, colour.repeat(width * height))
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Red, green, blue of the first row's first pixel, and so on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The colour at (`x`, `y`), or `None` outside the image.
    #[must_use]
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        let at = self.offset(x, y)?;
        self.bytes.get(at..)?.first_chunk().copied()
    }

    /// The colour at (`x`, `y`), to change it; `None` outside the image.
    pub fn pixel_mut(&mut self, x: u32, y: u32) -> Option<&mut [u8; 3]> {
        let at = self.offset(x, y)?;
        self.bytes.get_mut(at..)?.first_chunk_mut()
    }

    /// Mirrors left and right in place; whether to is the caller's decision.
    ///
    /// ```
    /// let mut pixels = ddt_picture::Rgb8::new(2, 1, vec![1, 2, 3, 4, 5, 6])?;
    /// pixels.flip_horizontal();
    /// assert_eq!(pixels.as_bytes(), [4, 5, 6, 1, 2, 3]);
    /// # Ok::<(), ddt_picture::PictureError>(())
    /// ```
    pub fn flip_horizontal(&mut self) {
        for row in self.bytes.chunks_exact_mut(3 * self.width as usize) {
            // Reversing all bytes reverses the colours of each pixel too.
            row.reverse();
            row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
    }

    /// Draws `image` with its top left corner at (`x`, `y`), each pixel as a square of `factor` pixels.
    ///
    /// Parts outside are cut off.
    pub fn paste(&mut self, x: usize, y: usize, image: &Self, factor: usize) {
        let (width, height) = (self.width as usize, self.height as usize);
        let columns = (image.width as usize).saturating_mul(factor).min(width.saturating_sub(x));
        let rows = (image.height as usize).saturating_mul(factor).min(height.saturating_sub(y));
        for row in 0..rows {
            for column in 0..columns {
                let from = image.pixel((column / factor) as u32, (row / factor) as u32);
                let to = self.pixel_mut((x + column) as u32, (y + row) as u32);
                if let (Some(from), Some(to)) = (from, to) {
                    *to = from;
                }
            }
        }
    }

    fn offset(&self, x: u32, y: u32) -> Option<usize> {
        (x < self.width && y < self.height).then(|| (y as usize * self.width as usize + x as usize) * 3)
    }
}

/// The size only: a photo's bytes would fill a log.
impl fmt::Debug for Rgb8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rgb8({} x {})", self.width, self.height)
    }
}

/// Checks that a picture of this size can be drawn.
pub(crate) fn check_size(width: usize, height: usize) -> Result<(), PictureError> {
    let sides = 1..=MAX_SIDE;
    if sides.contains(&width) && sides.contains(&height) && width * height <= MAX_PIXELS {
        return Ok(());
    }
    Err(PictureError::Size { width, height })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_must_fit_and_a_double_flip_is_none() {
        for (width, height, bytes) in [(0, 1, 0), (1, 0, 0), (2, 2, 11), (u32::MAX, u32::MAX, 3)] {
            assert!(matches!(Rgb8::new(width, height, vec![0; bytes]), Err(PictureError::Shape { .. })));
        }
        for (width, height) in [(0, 1), (1, 0), (MAX_SIDE + 1, 1), (usize::MAX, usize::MAX), (32768, 32768)] {
            assert!(matches!(Rgb8::filled(width, height, [0; 3]), Err(PictureError::Size { .. })));
        }
        let image = Rgb8::new(5, 3, (0..45).collect()).unwrap();
        let mut flipped = image.clone();
        flipped.flip_horizontal();
        assert_ne!(flipped, image);
        flipped.flip_horizontal();
        assert_eq!(flipped, image);
    }

    #[test]
    fn pasting_enlarges_by_whole_factors_and_cuts_at_the_edge() {
        let image = Rgb8::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let mut picture = Rgb8::filled(8, 5, [250; 3]).unwrap();
        picture.paste(1, 1, &image, 3);
        let count = |picture: &Rgb8, colour| {
            picture.bytes.as_chunks::<3>().0.iter().filter(|it| **it == colour).count()
        };
        assert_eq!((count(&picture, [1, 2, 3]), count(&picture, [4, 5, 6])), (9, 9));
        assert_eq!((picture.pixel(3, 3), picture.pixel(4, 1)), (Some([1, 2, 3]), Some([4, 5, 6])));
        picture.paste(6, 4, &image, 2);
        assert_eq!((picture.pixel(7, 4), picture.pixel(8, 4)), (Some([1, 2, 3]), None));
        picture.paste(usize::MAX, usize::MAX, &image, usize::MAX);
        assert_eq!(count(&picture, [1, 2, 3]), 9 + 2);
    }
}
