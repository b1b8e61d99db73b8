//! RGB images: 8-bit pixels as bytes.

use std::fmt;

use crate::error::ImageError;

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
    /// [`ImageError::Size`] for another number of bytes or a side of zero.
    pub fn new(width: u32, height: u32, bytes: Vec<u8>) -> Result<Self, ImageError> {
        let expected = (width as usize).checked_mul(height as usize).and_then(|it| it.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(bytes.len()) {
            let expected = format!("{width} x {height} x 3 bytes and no empty side");
            return Err(ImageError::Size { expected, got: format!("{} bytes", bytes.len()) });
        }
        Ok(Self { width, height, bytes })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Interleaved red, green and blue, row by row.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Mirrors left and right, in place.
    ///
    /// ```
    /// let mut pixels = ddt_data::Rgb8::new(2, 1, vec![1, 2, 3, 4, 5, 6])?;
    /// pixels.flip_horizontal();
    /// assert_eq!(pixels.as_bytes(), [4, 5, 6, 1, 2, 3]);
    /// # Ok::<(), ddt_data::ImageError>(())
    /// ```
    pub fn flip_horizontal(&mut self) {
        for row in self.bytes.chunks_exact_mut(3 * self.width as usize) {
            // Reversing all bytes reverses the colours of each pixel too.
            row.reverse();
            row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
    }
}

/// The size only: a photo's bytes would fill a log.
impl fmt::Debug for Rgb8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rgb8({} x {})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_must_fit_and_a_double_flip_is_none() {
        for (width, height, bytes) in [(0, 1, 0), (1, 0, 0), (2, 2, 11), (u32::MAX, u32::MAX, 3)] {
            assert!(matches!(Rgb8::new(width, height, vec![0; bytes]), Err(ImageError::Size { .. })));
        }
        let image = Rgb8::new(5, 3, (0..45).collect()).unwrap();
        let mut flipped = image.clone();
        flipped.flip_horizontal();
        assert_eq!(flipped.as_bytes()[15..18], image.as_bytes()[27..30]);
        flipped.flip_horizontal();
        assert_eq!(flipped, image);
    }
}
