//! An RGB picture in memory: fill, paste, write text.
//!
//! Everything that is drawn is clipped to the picture, so layouts may be careless about edges.

use anyhow::{Result, ensure};

use crate::text::{self, GLYPH};

/// Red, green and blue, 0 to 255 (sRGB).
pub type Colour = [u8; 3];

/// Largest width and height in pixels; viewers fail on larger pictures.
const MAX_SIDE: usize = 1 << 15;

/// Largest size in memory, in bytes.
const MAX_BYTES: usize = 1 << 30;

/// An RGB picture, 8 bits a channel.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    ///
    /// # Errors
    ///
    /// If it would be empty, larger than 32768 pixels a side, or larger than 1 GiB.
    pub fn new(width: usize, height: usize, colour: Colour) -> Result<Self> {
        check_size(width, height)?;
        Ok(Self { width, height, pixels: colour.repeat(width * height) })
    }

    /// A picture of these pixels.
    ///
    /// # Shapes
    ///
    /// `pixels`: (`height`, `width`, 3), row by row from the top left.
    ///
    /// # Errors
    ///
    /// As [`Picture::new`], and if the number of bytes is not `3 * width * height`.
    pub fn from_pixels(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let bytes = check_size(width, height)?;
        ensure!(
            pixels.len() == bytes,
            "a picture of {width} x {height} pixels: expected {bytes} bytes, got {}",
            pixels.len()
        );
        Ok(Self { width, height, pixels })
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels: (`height`, `width`, 3), row by row from the top left.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The colour at (`x`, `y`), or `None` outside the picture.
    #[must_use]
    pub fn colour_at(&self, x: usize, y: usize) -> Option<Colour> {
        let start = (x < self.width && y < self.height).then(|| (y * self.width + x) * 3)?;
        self.pixels.get(start..)?.first_chunk().copied()
    }

    /// Fills a rectangle whose top left corner is (`x`, `y`).
    pub fn fill(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), colour: Colour) {
        let right = x.saturating_add(width).min(self.width);
        let bottom = y.saturating_add(height).min(self.height);
        for row in y..bottom {
            let start = row * self.width;
            if let Some(line) = self.pixels.get_mut((start + x.min(right)) * 3..(start + right) * 3) {
                line.as_chunks_mut::<3>().0.fill(colour);
            }
        }
    }

    /// Draws `image` with its top left corner at (`x`, `y`), each pixel as a square of `factor` pixels.
    pub fn paste(&mut self, (x, y): (usize, usize), image: &Picture, factor: usize) {
        let columns = image.width.saturating_mul(factor).min(self.width.saturating_sub(x));
        if columns == 0 {
            return;
        }
        for (row, line) in image.pixels.chunks_exact(3 * image.width).enumerate() {
            let wide = line.as_chunks::<3>().0.iter().flat_map(|colour| std::iter::repeat_n(*colour, factor));
            let wide: Vec<u8> = wide.take(columns).flatten().collect();
            let top = y.saturating_add(row.saturating_mul(factor));
            for target_row in top..top.saturating_add(factor).min(self.height) {
                let start = (target_row * self.width + x) * 3;
                if let Some(target) = self.pixels.get_mut(start..start + wide.len()) {
                    target.copy_from_slice(&wide);
                }
            }
        }
    }

    /// Writes one line of text with its top left corner at (`x`, `y`), `8 * scale` pixels high.
    pub fn write(&mut self, (x, y): (usize, usize), line: &str, scale: usize, colour: Colour) {
        for (position, letter) in line.chars().enumerate() {
            for (row, bits) in text::glyph(letter).into_iter().enumerate() {
                let below = y.saturating_add(row.saturating_mul(scale));
                for column in (0..GLYPH).filter(|column| bits >> column & 1 == 1) {
                    let across = x.saturating_add((position * GLYPH + column).saturating_mul(scale));
                    self.fill((across, below), (scale, scale), colour);
                }
            }
        }
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// Bytes of a picture of this size, or why there can be none.
pub(crate) fn check_size(width: usize, height: usize) -> Result<usize> {
    let bytes = width.saturating_mul(height).saturating_mul(3);
    ensure!(
        (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) && bytes <= MAX_BYTES,
        "a picture of {width} x {height} pixels: expected 1 to {MAX_SIDE} pixels a side and at most \
         {} megapixels; draw fewer or smaller images",
        MAX_BYTES / 3_000_000
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Colour = [250; 3];
    const INK: Colour = [10, 20, 30];

    fn count(picture: &Picture, colour: Colour) -> usize {
        picture.pixels().as_chunks::<3>().0.iter().filter(|c| **c == colour).count()
    }

    #[test]
    fn sizes_are_checked() {
        for (width, height) in [(0, 1), (1, 0), (MAX_SIDE + 1, 1), (usize::MAX, usize::MAX), (32768, 32768)] {
            assert!(Picture::new(width, height, PAPER).is_err(), "{width} x {height}");
        }
        assert!(Picture::from_pixels(2, 2, vec![0; 11]).is_err());
    }

    #[test]
    fn fills_are_clipped() {
        let mut picture = Picture::new(4, 3, PAPER).unwrap();
        picture.fill((2, 1), (9, 9), INK);
        assert_eq!(count(&picture, INK), 4);
        for corner in [(4, 0), (0, 3), (usize::MAX, usize::MAX)] {
            picture.fill(corner, (2, usize::MAX), [0; 3]);
        }
        assert_eq!((count(&picture, INK), count(&picture, PAPER)), (4, 8));
        assert_eq!(picture.colour_at(2, 1), Some(INK));
        assert_eq!(picture.colour_at(1, 1), Some(PAPER));
        assert_eq!(picture.colour_at(4, 1), None);
    }

    #[test]
    fn pasting_enlarges_by_whole_factors() {
        let image = Picture::from_pixels(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let mut picture = Picture::new(8, 5, PAPER).unwrap();
        picture.paste((1, 1), &image, 3);
        assert_eq!((count(&picture, [1, 2, 3]), count(&picture, [4, 5, 6])), (9, 9));
        assert_eq!(picture.colour_at(3, 3), Some([1, 2, 3]));
        assert_eq!(picture.colour_at(4, 1), Some([4, 5, 6]));
        picture.paste((6, 4), &image, 2);
        assert_eq!(picture.colour_at(7, 4), Some([1, 2, 3]));
        picture.paste((usize::MAX, usize::MAX), &image, usize::MAX / 4);
        assert_eq!(count(&picture, [1, 2, 3]), 9 + 2);
    }

    #[test]
    fn text_stays_in_its_box_and_scales() {
        let drawn = |line: &str, scale: usize| {
            let mut picture = Picture::new(100, 40, PAPER).unwrap();
            picture.write((4, 4), line, scale, INK);
            (count(&picture, INK), picture)
        };
        let (once, picture) = drawn("Ag", 1);
        assert!(once > 20);
        assert!((0..40).all(|y| (0..100).all(|x| {
            picture.colour_at(x, y) != Some(INK) || ((4..20).contains(&x) && (4..12).contains(&y))
        })));
        assert_eq!(drawn("Ag", 3).0, 9 * once);
        assert_eq!(drawn("", 1).0, 0);
        drawn("A", usize::MAX);
    }
}
