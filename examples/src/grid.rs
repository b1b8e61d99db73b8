//! A labelled grid of pictures: a row for each class, a column for each seed.

use anyhow::{Result, ensure};

use crate::picture::{self, Colour, Picture};
use crate::text::{GLYPH, shorten, wrap};

const PAPER: Colour = [250, 250, 248];
const INK: Colour = [36, 36, 40];
const FAINT: Colour = [120, 120, 126];

/// Images smaller than this are enlarged by whole factors while they stay within it, in pixels.
const COMFORTABLE: usize = 128;

/// Longest line of a row label, in letters, and how many lines it may have.
const LABEL_LETTERS: usize = 14;
const LABEL_LINES: usize = 3;

/// Most lines of text below the grid.
const FOOTER_LINES: usize = 4;

/// What a grid shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grid<'a> {
    /// One label a row; it is wrapped, and shortened with an ellipsis if it still does not fit.
    pub row_labels: &'a [String],
    /// One label a column, or none at all.
    pub column_labels: &'a [String],
    /// The images row by row, all of one size; their number is the number of rows times that of columns.
    pub images: &'a [Picture],
    /// A line above the grid; empty for none.
    pub title: &'a str,
    /// Small print below the grid; empty for none.
    pub footer: &'a str,
}

/// Positions in pixels; `x` runs right and `y` down.
struct Layout {
    columns: usize,
    /// Factor by which images are enlarged.
    factor: usize,
    /// Size of a letter, and of one in small print.
    letter: usize,
    small: usize,
    cell: (usize, usize),
    gap: usize,
    margin: usize,
    /// Top left corner of the first image.
    origin: (usize, usize),
    size: (usize, usize),
    title: String,
    row_labels: Vec<Vec<String>>,
    footer: Vec<String>,
}

impl Grid<'_> {
    /// Draws the grid: dark text on a light ground, images enlarged by a whole factor if they are small.
    ///
    /// # Errors
    ///
    /// If there is no image, if images differ in size, if their number does not fit the labels, or if the whole
    /// would be too large ([`Picture::new`]).
    pub fn draw(&self) -> Result<Picture> {
        let (columns, image) = self.columns_and_size()?;
        let layout = self.layout(columns, image);
        let Layout { columns, factor, letter, cell, gap, margin, origin, .. } = layout;
        let scale = letter / GLYPH;
        let line = line_height(letter);
        let mut picture = Picture::new(layout.size.0, layout.size.1, PAPER)?;

        picture.write((margin, margin), &layout.title, scale, INK);
        for (column, label) in self.column_labels.iter().enumerate() {
            let label = shorten(label, cell.0 / letter);
            let x = origin.0 + column * (cell.0 + gap) + (cell.0 - width_of(&label, letter)) / 2;
            picture.write((x, origin.1 - line), &label, scale, FAINT);
        }
        for (index, image) in self.images.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            let corner = (origin.0 + column * (cell.0 + gap), origin.1 + row * (cell.1 + gap));
            picture.paste(corner, image, factor);
        }
        for (row, lines) in layout.row_labels.iter().enumerate() {
            // Centred on the row; the last line needs no space below it.
            let height = (lines.len() * line).saturating_sub(line - letter);
            let top = origin.1 + row * (cell.1 + gap) + cell.1.saturating_sub(height) / 2;
            for (index, text) in lines.iter().enumerate() {
                let x = origin.0 - margin.min(origin.0) - width_of(text, letter);
                picture.write((x, top + index * line), text, scale, INK);
            }
        }
        let line = line_height(layout.small);
        let below = layout.size.1.saturating_sub(margin + layout.footer.len() * line);
        for (index, text) in layout.footer.iter().enumerate() {
            picture.write((margin, below + index * line), text, layout.small / GLYPH, FAINT);
        }
        Ok(picture)
    }

    /// Checks that a grid of `columns` images a row, of `image` pixels (width, height), could be drawn; the images
    /// need not exist yet. Leaves room for the longest footer beside the one that is there.
    ///
    /// # Errors
    ///
    /// As [`Grid::draw`].
    pub fn check_size(&self, columns: usize, image: (usize, usize)) -> Result<()> {
        let Layout { size: (width, height), letter, small, .. } = self.layout(columns, image);
        let footer = letter + FOOTER_LINES * line_height(small);
        picture::check_size(width, height.saturating_add(footer)).map(drop)
    }

    /// How many images are in a row, and their width and height.
    fn columns_and_size(&self) -> Result<(usize, (usize, usize))> {
        let rows = self.row_labels.len();
        let count = self.images.len();
        let Some(first) = self.images.first() else { anyhow::bail!("expected at least one image, got none") };
        ensure!(
            rows > 0 && count.is_multiple_of(rows),
            "expected images for {rows} rows of equal length, got {count} images"
        );
        let columns = count / rows;
        ensure!(
            self.column_labels.is_empty() || self.column_labels.len() == columns,
            "expected {columns} column labels or none, got {}",
            self.column_labels.len()
        );
        let image = (first.width(), first.height());
        if let Some(other) = self.images.iter().position(|other| (other.width(), other.height()) != image) {
            anyhow::bail!(
                "expected images of one size, got {first:?} and, at {other}, {:?}",
                self.images[other]
            );
        }
        Ok((columns, image))
    }

    fn layout(&self, columns: usize, image: (usize, usize)) -> Layout {
        let rows = self.row_labels.len();
        let factor = (COMFORTABLE / image.0.max(image.1)).max(1);
        let cell = (image.0 * factor, image.1 * factor);
        let letter = GLYPH * letter_scale(cell.0.min(cell.1));
        let line = line_height(letter);
        let gap = (cell.0.min(cell.1) / 32).max(2);
        let margin = 2 * letter;

        let lines = (cell.1 / line).clamp(1, LABEL_LINES);
        let row_labels: Vec<_> =
            self.row_labels.iter().map(|label| wrap(label, LABEL_LETTERS, lines)).collect();
        let labels = row_labels.iter().flatten().map(|text| width_of(text, letter)).max().unwrap_or(0);
        let origin_x = if labels == 0 { margin } else { 2 * margin + labels };
        let width = columns
            .saturating_mul(cell.0 + gap)
            .saturating_add(origin_x + margin - gap)
            .max(2 * margin + letter * self.title.chars().count().min(LABEL_LETTERS));

        let letters = (width - 2 * margin) / letter;
        let title = shorten(self.title, letters);
        let small = GLYPH * (letter / GLYPH / 2).max(1);
        let footer = wrap(self.footer, (width - 2 * margin) / small, FOOTER_LINES);
        let heading = if title.is_empty() { 0 } else { line + letter };
        let names = if self.column_labels.is_empty() { 0 } else { line };
        let small_print = if footer.is_empty() { 0 } else { letter + footer.len() * line_height(small) };
        let origin = (origin_x, margin + heading + names);
        let height = rows.saturating_mul(cell.1 + gap).saturating_add(origin.1 + small_print + margin - gap);
        Layout {
            columns,
            factor,
            letter,
            small,
            cell,
            gap,
            margin,
            origin,
            size: (width, height),
            title,
            row_labels,
            footer,
        }
    }
}

/// How much letters are enlarged beside images of this size in pixels.
fn letter_scale(cell: usize) -> usize {
    match cell {
        ..96 => 1,
        96..384 => 2,
        _ => 3,
    }
}

/// A letter and the space below it.
fn line_height(letter: usize) -> usize {
    letter + letter / 2
}

fn width_of(text: &str, letter: usize) -> usize {
    text.chars().count() * letter
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Colour = [200, 0, 0];

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Left, top, right and bottom of everything in `colour`, ends excluded.
    fn bounds(picture: &Picture, wanted: impl Fn(Colour) -> bool) -> Option<(usize, usize, usize, usize)> {
        let mut bounds: Option<(usize, usize, usize, usize)> = None;
        for y in 0..picture.height() {
            for x in (0..picture.width()).filter(|x| picture.colour_at(*x, y).is_some_and(&wanted)) {
                let (left, top, right, bottom) = bounds.unwrap_or((x, y, x + 1, y + 1));
                bounds = Some((left.min(x), top, right.max(x + 1), bottom.max(y + 1)));
            }
        }
        bounds
    }

    #[test]
    fn a_bare_grid_is_margins_cells_and_gaps() {
        let images = vec![Picture::new(32, 32, RED).unwrap(); 6];
        let grid = Grid { row_labels: &labels(&["", ""]), images: &images, ..Grid::default() };
        let picture = grid.draw().unwrap();
        // Enlarged four times to 128; margin 32, gap 4.
        assert_eq!((picture.width(), picture.height()), (32 + 3 * 128 + 2 * 4 + 32, 32 + 2 * 128 + 4 + 32));
        assert_eq!(
            bounds(&picture, |c| c == RED),
            Some((32, 32, picture.width() - 32, picture.height() - 32))
        );
        assert_eq!(picture.colour_at(32 + 128, 32), Some(PAPER));
        assert_eq!(picture.colour_at(32 + 128 + 4, 32), Some(RED));
    }

    #[test]
    fn text_stays_inside_its_own_space() {
        for (size, letter) in [(8, 16), (32, 16), (70, 8), (100, 16), (256, 16), (512, 24)] {
            let images = vec![Picture::new(size, size, RED).unwrap(); 4];
            let grid = Grid {
                row_labels: &labels(&[
                    "American Staffordshire terrier with a very long name indeed",
                    "猫 cat",
                ]),
                column_labels: &labels(&[
                    "seed 0",
                    "a column label that is far too long for any column of a grid",
                ]),
                images: &images,
                title: "a title that goes on and on and on and on and on and on and on and on and on and on and on",
                footer: &"small print ".repeat(90),
            };
            let picture = grid.draw().unwrap();
            let (left, top, right, bottom) = bounds(&picture, |c| c == RED).unwrap();
            let ink = bounds(&picture, |c| c == INK || c == FAINT).unwrap();
            let margin = 2 * letter;
            assert_eq!(right, picture.width() - margin, "size {size}");
            assert!(left <= 2 * margin + LABEL_LETTERS * letter);
            assert!(ink.0 >= margin && ink.1 >= margin, "size {size}: {ink:?}");
            assert!(ink.2 <= right && ink.3 <= picture.height() - margin, "size {size}: {ink:?}");
            assert!(ink.1 < top && ink.3 > bottom);
            let red = picture.pixels().as_chunks::<3>().0.iter().filter(|c| **c == RED).count();
            let factor = (128 / size).max(1);
            assert_eq!(red, 4 * (size * factor).pow(2), "text lies on an image of size {size}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let images = vec![Picture::new(4, 4, RED).unwrap(); 4];
        let mixed = vec![Picture::new(4, 4, RED).unwrap(), Picture::new(4, 5, RED).unwrap()];
        let (one, two, three) = (labels(&["a"]), labels(&["a", "b"]), labels(&["a", "b", "c"]));
        let none: &[String] = &[];
        for (images, row_labels, column_labels, expected) in [
            (&images[..0], one.as_slice(), none, "at least one image"),
            (&images, none, none, "0 rows"),
            (&images, &three, none, "3 rows"),
            (&images, &two, &three, "2 column labels"),
            (&mixed, &two, none, "one size"),
        ] {
            let grid = Grid { row_labels, column_labels, images, ..Grid::default() };
            let message = grid.draw().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let many = vec![Picture::new(512, 1, RED).unwrap(); 100];
        assert!(Grid { row_labels: &one, images: &many, ..Grid::default() }.draw().is_err());
    }
}
