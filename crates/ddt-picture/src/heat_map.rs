//! A square matrix as a picture, for similarities between sampling steps.

use crate::{
    canvas::{Anchor, INK, MEDIUM, PAPER, shorten},
    rgb8::{PictureError, Rgb8, content},
};

/// Side of the coloured square in pixels, if the matrix divides it; otherwise the nearest that it does divide.
const SIDE: usize = 640;

/// Space around everything, and width of the colour bar, in pixels.
const MARGIN: usize = 24;

/// The colour map viridis at five places: its lightness grows evenly from low to high.
const VIRIDIS: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

/// A square matrix as a picture.
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
    /// Label of rows and columns, below the columns; empty for none.
    pub axis: &'a str,
}

impl HeatMap<'_> {
    /// Draws the matrix with row and column numbers and a colour bar; row 0 is at the top.
    ///
    /// Values outside `low..=high` get the colour of the nearer end.
    ///
    /// # Errors
    /// [`PictureError::Content`] for a matrix that is empty, not square or not finite, and unless `low < high`;
    /// [`PictureError::Size`] for one too large to draw.
    pub fn draw(&self) -> Result<Rgb8, PictureError> {
        let Self { values, size, low, high, title, axis } = *self;
        if size == 0 || size.checked_mul(size) != Some(values.len()) {
            return Err(content(
                format!("{size} x {size} values and at least one"),
                values.len().to_string(),
            ));
        }
        if !(low < high && low.is_finite() && high.is_finite()) {
            return Err(content("colours from low to high", format!("{low} to {high}")));
        }
        if let Some(at) = values.iter().position(|it| !it.is_finite()) {
            let place = format!("{} in row {}, column {}", values[at], at / size, at % size);
            return Err(content("finite values", place));
        }

        let cell = (SIDE / size).max(1);
        let side = cell * size;
        let (letter, line) = (MEDIUM.width(), MEDIUM.line());
        let digits = (size - 1).to_string().len();
        let left = MARGIN + (digits + 1) * letter;
        let top = MARGIN + if title.is_empty() { 0 } else { 2 * line };
        let bar = left + side + MARGIN;
        let width = bar + MARGIN + 7 * letter + MARGIN;
        let mut page = Rgb8::filled(width, top + side + 3 * line + MARGIN, PAPER)?;

        for (index, value) in values.iter().enumerate() {
            let corner = (left + index % size * cell, top + index / size * cell);
            page.fill(corner, (cell, cell), colour_of((value - low) / (high - low)));
        }
        let heading = shorten(title, (width - 2 * MARGIN) / letter);
        page.write((MARGIN, MARGIN), &heading, MEDIUM, INK, Anchor::Left);
        for index in (0..size).step_by(tick_step(size, (digits + 2) * letter, cell)) {
            let (text, middle) = (index.to_string(), index * cell + cell / 2);
            page.write((left + middle, top + side + 4), &text, MEDIUM, INK, Anchor::Centre);
            let row = (left - letter / 2, (top + middle).saturating_sub(line / 2));
            page.write(row, &text, MEDIUM, INK, Anchor::Right);
        }
        let name = shorten(axis, side / letter);
        page.write((left + side / 2, top + side + line + 8), &name, MEDIUM, INK, Anchor::Centre);

        for y in 0..side {
            let share = 1.0 - y as f64 / (side.max(2) - 1) as f64;
            page.fill((bar, top + y), (MARGIN, 1), colour_of(share));
        }
        for quarter in 0..=4 {
            let value = high - (high - low) * f64::from(quarter) / 4.0;
            let y = top + side.saturating_sub(line) * quarter as usize / 4;
            page.write((bar + MARGIN + letter / 2, y), &short(value), MEDIUM, INK, Anchor::Left);
        }
        Ok(page)
    }
}

/// The colour of `share` in [0, 1], from dark to light; the nearer end outside.
fn colour_of(share: f64) -> [u8; 3] {
    let at = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let below = (at as usize).min(VIRIDIS.len() - 2);
    let part = at - below as f64;
    std::array::from_fn(|i| (VIRIDIS[below][i] * (1.0 - part) + VIRIDIS[below + 1][i] * part).round() as u8)
}

/// The smallest of 1, 2, 5, 10, ... cells that leaves each tick `needed` pixels.
fn tick_step(size: usize, needed: usize, cell: usize) -> usize {
    let steps = (0..12).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_usize.pow(power)));
    steps.into_iter().find(|step| step.saturating_mul(cell) >= needed).unwrap_or(size).max(1)
}

/// A value in at most seven letters.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    if text.len() <= 7 { text } else { format!("{value:.0e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance(colour: [u8; 3]) -> f64 {
        let [red, green, blue] = colour.map(|it| (f64::from(it) / 255.0).powf(2.2));
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    #[test]
    fn colours_grow_lighter_without_jumps() {
        let colours: Vec<_> = (0..=100).map(|i| colour_of(f64::from(i) / 100.0)).collect();
        for pair in colours.windows(2) {
            assert!(luminance(pair[1]) > luminance(pair[0]), "{pair:?}");
            assert!((0..3).all(|c| pair[0][c].abs_diff(pair[1][c]) < 12), "{pair:?}");
        }
        assert_eq!([colour_of(-3.0), colour_of(7.0)], [colours[0], colours[100]]);
        // Near black and near white, so that the map survives a grey printer.
        assert!(luminance(colours[0]) < 0.03 && luminance(colours[100]) > 0.75);
    }

    #[test]
    fn the_matrix_is_drawn_cell_by_cell() {
        let values = [1.0, 0.0, 0.5, 1.0];
        let page = HeatMap { values: &values, size: 2, low: 0.0, high: 1.0, title: "t", axis: "step" }
            .draw()
            .unwrap();
        let (left, top) = (MARGIN + 2 * MEDIUM.width(), MARGIN + 2 * MEDIUM.line());
        for (index, value) in values.iter().enumerate() {
            let (x, y) = (left + index % 2 * 320, top + index / 2 * 320);
            for (x, y) in [(x, y), (x + 319, y + 319)] {
                assert_eq!(page.pixel(x as u32, y as u32), Some(colour_of(*value)));
            }
        }
        assert_eq!(page.pixel((left + 640) as u32, top as u32), Some(PAPER));
    }

    #[test]
    fn every_size_is_drawn_and_bad_input_is_refused() {
        for size in [1, 3, 50, 250, 700, 1000] {
            let values = vec![0.5; size * size];
            let map = HeatMap { values: &values, size, low: 0.0, high: 1.0, title: "", axis: "" };
            assert!(map.draw().unwrap().width() >= 600, "{size}");
        }
        for (values, size, low, high) in [
            (&[][..], 0, 0.0, 1.0),
            (&[0.0; 3], 2, 0.0, 1.0),
            (&[0.0, f64::NAN, 0.0, 0.0], 2, 0.0, 1.0),
            (&[0.0], 1, 1.0, 1.0),
            (&[0.0], 1, f64::NAN, 1.0),
            (&[0.0], usize::MAX, 0.0, 1.0),
        ] {
            let map = HeatMap { values, size, low, high, title: "", axis: "" };
            assert!(map.draw().is_err(), "{values:?} {size} {low} {high}");
        }
    }

    #[test]
    fn ticks_are_round_numbers_and_values_short() {
        assert_eq!([tick_step(10, 48, 64), tick_step(50, 64, 12), tick_step(250, 80, 2)], [1, 10, 50]);
        assert!(tick_step(5, usize::MAX, 1) >= 5);
        assert_eq!([short(0.975), short(-0.5), short(123_456_789.0)], ["0.975", "-0.500", "1e8"]);
    }
}
