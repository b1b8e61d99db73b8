//! A square matrix as a picture, for similarities between sampling steps.

use anyhow::{Result, bail, ensure};

use crate::picture::{Colour, Picture};
use crate::plot::number;
use crate::text::{GLYPH, shorten};

const PAPER: Colour = [250, 250, 248];
const INK: Colour = [36, 36, 40];

/// Side of the coloured square, if the matrix divides it; otherwise the nearest that it does divide.
const SIDE: usize = 640;

/// Letters are doubled.
const SCALE: usize = 2;
const LETTER: usize = GLYPH * SCALE;

/// Space around everything, and between the parts.
const MARGIN: usize = 2 * LETTER;

/// Width of the colour bar.
const BAR: usize = 2 * LETTER;

/// Letters beside the colour bar.
const BAR_LETTERS: usize = 6;

/// What a heat map shows.
#[derive(Debug, Clone, Copy)]
pub struct HeatMap<'a> {
    /// (`size`, `size`), row by row from the top.
    pub values: &'a [f64],
    /// Number of rows and columns.
    pub size: usize,
    /// Value of the darkest colour.
    pub low: f64,
    /// Value of the lightest colour.
    pub high: f64,
    /// A line above; empty for none.
    pub title: &'a str,
    /// What rows and columns count, below the columns; empty for none.
    pub axis: &'a str,
}

impl HeatMap<'_> {
    /// Draws the matrix with row and column numbers and a colour bar; row 0 is at the top.
    ///
    /// Values outside `low..=high` get the colour of the nearer end.
    ///
    /// # Errors
    ///
    /// If the matrix is empty, not square, not finite or too large to draw, or unless `low < high`.
    pub fn draw(&self) -> Result<Picture> {
        let Self { values, size, low, high, .. } = *self;
        ensure!(
            size > 0 && size.checked_mul(size) == Some(values.len()),
            "a heat map of size {size}: expected size x size values and at least one, got {}",
            values.len()
        );
        ensure!(
            low < high && low.is_finite() && high.is_finite(),
            "expected colours from low to high, got {low} to {high}"
        );
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("expected finite values, got {} in row {}, column {}", values[at], at / size, at % size);
        }

        let cell = (SIDE / size).max(1);
        let side = cell * size;
        let digits = (size - 1).to_string().len();
        let heading = if self.title.is_empty() { 0 } else { 2 * LETTER };
        let (left, top) = (MARGIN + digits * LETTER + LETTER / 2, MARGIN + heading);
        let bar_left = left + side + MARGIN;
        let naming = if self.axis.is_empty() { 0 } else { LETTER + LETTER / 2 };
        let width = bar_left + BAR + LETTER / 2 + BAR_LETTERS * LETTER + MARGIN;
        let mut picture = Picture::new(width, top + side + LETTER * 3 / 2 + naming + MARGIN, PAPER)?;

        for (index, value) in values.iter().enumerate() {
            let corner = (left + index % size * cell, top + index / size * cell);
            picture.fill(corner, (cell, cell), colour_of((value - low) / (high - low)));
        }
        picture.write((MARGIN, MARGIN), &shorten(self.title, (width - 2 * MARGIN) / LETTER), SCALE, INK);

        // Numbers need their own width and a blank on either side.
        let step = tick_step(size, (digits + 2) * LETTER, cell);
        for index in (0..size).step_by(step) {
            let text = index.to_string();
            let middle = index * cell + cell / 2;
            let x = (left + middle).saturating_sub(text.len() * LETTER / 2);
            picture.write((x, top + side + LETTER / 2), &text, SCALE, INK);
            let x = left - LETTER / 2 - text.len() * LETTER;
            picture.write((x, (top + middle).saturating_sub(LETTER / 2)), &text, SCALE, INK);
        }
        let axis = shorten(self.axis, side / LETTER);
        let x = left + (side - axis.chars().count() * LETTER) / 2;
        picture.write((x, top + side + 2 * LETTER), &axis, SCALE, INK);

        for y in 0..side {
            let share = 1.0 - y as f64 / (side.max(2) - 1) as f64;
            picture.fill((bar_left, top + y), (BAR, 1), colour_of(share));
        }
        for quarter in 0..=4 {
            let value = high - (high - low) * quarter as f64 / 4.0;
            let y = top + (side - LETTER.min(side)) * quarter / 4;
            picture.write(
                (bar_left + BAR + LETTER / 2, y),
                &shorten(&number(value), BAR_LETTERS),
                SCALE,
                INK,
            );
        }
        Ok(picture)
    }
}

/// The colour of `share` in [0, 1]: from dark violet over teal to light yellow.
///
/// Equal differences look equal: lightness is linear in `share` in the colour space Oklab, and hue turns steadily.
///
/// ```text
/// L = 0.22 + 0.73 share    hue = 300 - 195 share degrees    chroma = 0.1
/// ```
#[must_use]
pub fn colour_of(share: f64) -> Colour {
    let share = share.clamp(0.0, 1.0);
    let lightness = 0.22 + 0.73 * share;
    let (sin, cos) = (300.0 - 195.0 * share).to_radians().sin_cos();
    let (a, b) = (0.1 * cos, 0.1 * sin);
    // Oklab to cone responses, and those to linear sRGB (Ottosson 2020).
    let long = (lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let medium = (lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let short = (lightness - 0.089_484_177_5 * a - 1.291_485_548_0 * b).powi(3);
    [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701_0 * short,
    ]
    .map(|linear| {
        let linear = linear.clamp(0.0, 1.0);
        let encoded =
            if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        (255.0 * encoded).round() as u8
    })
}

/// The smallest of 1, 2, 5, 10, 20, 50, ... cells that is at least `needed` pixels.
fn tick_step(size: usize, needed: usize, cell: usize) -> usize {
    let steps = (0..)
        .map_while(|power| 10_usize.checked_pow(power))
        .flat_map(|ten| [1, 2, 5].map(|d| ten.saturating_mul(d)));
    steps.into_iter().find(|step| step.saturating_mul(cell) >= needed).unwrap_or(size).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance([r, g, b]: Colour) -> f64 {
        let linear = |c: u8| (f64::from(c) / 255.0).powf(2.2);
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    #[test]
    fn colours_grow_lighter_without_jumps() {
        let colours: Vec<Colour> = (0..=100).map(|i| colour_of(f64::from(i) / 100.0)).collect();
        for pair in colours.windows(2) {
            assert!(luminance(pair[1]) > luminance(pair[0]), "{pair:?}");
            assert!((0..3).all(|c| pair[0][c].abs_diff(pair[1][c]) < 12), "{pair:?}");
        }
        assert_eq!(colour_of(-3.0), colours[0]);
        assert_eq!(colour_of(7.0), colours[100]);
        // Near black and near white, so that the map survives a grey printer.
        assert!(luminance(colours[0]) < 0.03 && luminance(colours[100]) > 0.8);
    }

    #[test]
    fn the_matrix_is_drawn_cell_by_cell() {
        let values = [1.0, 0.0, 0.5, 1.0];
        let map = HeatMap { values: &values, size: 2, low: 0.0, high: 1.0, title: "t", axis: "step" };
        let picture = map.draw().unwrap();
        let (left, top) = (MARGIN + LETTER + LETTER / 2, MARGIN + 2 * LETTER);
        for (index, value) in values.iter().enumerate() {
            let (x, y) = (left + index % 2 * 320, top + index / 2 * 320);
            for corner in [(x, y), (x + 319, y + 319)] {
                assert_eq!(picture.colour_at(corner.0, corner.1), Some(colour_of(*value)));
            }
        }
        assert_eq!(picture.colour_at(left + 640, top), Some(PAPER));
    }

    #[test]
    fn every_size_draws_and_bad_input_is_refused() {
        for size in [1, 3, 50, 250, 700, 1000] {
            let values = vec![0.5; size * size];
            let map = HeatMap { values: &values, size, low: 0.0, high: 1.0, title: "", axis: "" };
            assert!(map.draw().unwrap().width() >= 600, "{size}");
        }
        let map = |values, size, low, high| HeatMap { values, size, low, high, title: "", axis: "" }.draw();
        for (values, size, low, high) in [
            (&[][..], 0, 0.0, 1.0),
            (&[0.0; 3], 2, 0.0, 1.0),
            (&[0.0, f64::NAN, 0.0, 0.0], 2, 0.0, 1.0),
            (&[0.0], 1, 1.0, 1.0),
            (&[0.0], 1, f64::NAN, 1.0),
            (&[0.0], usize::MAX, 0.0, 1.0),
        ] {
            assert!(map(values, size, low, high).is_err(), "{values:?} {size} {low} {high}");
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(tick_step(10, 48, 64), 1);
        assert_eq!(tick_step(50, 64, 12), 10);
        assert_eq!(tick_step(250, 80, 2), 50);
        assert!(tick_step(5, usize::MAX, 1) >= 5);
    }
}
