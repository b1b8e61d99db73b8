//! A labelled grid of images: a row for each class, a column for each seed.

use crate::{
    canvas::{Anchor, FAINT, Font, INK, LARGE, MEDIUM, PAPER, SMALL, shorten, wrap},
    rgb8::{PictureError, Rgb8, check_size, content},
};

/// Images smaller than this are enlarged by whole factors while they stay within it, in pixels.
const COMFORTABLE: usize = 128;

/// Longest line of a row label, in letters, and how many lines it may have.
const LABEL_LETTERS: usize = 16;
const LABEL_LINES: usize = 3;

/// Most lines of text below the grid.
const FOOTER_LINES: usize = 4;

/// A labelled grid of images.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grid<'a> {
    /// One label per row; wrapped, and shortened if it still does not fit.
    pub row_labels: &'a [String],
    /// One label per column, or none at all.
    pub column_labels: &'a [String],
    /// The images row by row, all of one size; their number is the number of rows times that of columns.
    pub images: &'a [Rgb8],
    /// A line above the grid; empty for none.
    pub title: &'a str,
    /// Small print below the grid; empty for none.
    pub footer: &'a str,
}

/// Positions and sizes, in pixels.
struct Layout {
    /// Factor by which images are enlarged.
    factor: usize,
    font: Font,
    cell: (usize, usize),
    gap: usize,
    margin: usize,
    /// Top left corner of the first image.
    origin: (usize, usize),
    size: (usize, usize),
    row_labels: Vec<Vec<String>>,
    footer: Vec<String>,
}

impl Grid<'_> {
    /// Draws dark text on a light ground; small images are enlarged by a whole factor.
    ///
    /// # Errors
    /// [`PictureError::Content`] without images, for images of different sizes, or a number of them that does not
    /// fit the labels; [`PictureError::Size`] for a grid that is too large.
    pub fn draw(&self) -> Result<Rgb8, PictureError> {
        let (columns, image) = self.columns_and_size()?;
        let Layout { factor, font, cell, gap, margin, origin, size, row_labels, footer } =
            self.layout(columns, image);
        let mut page = Rgb8::filled(size.0, size.1, PAPER)?;
        let title = shorten(self.title, (size.0 - 2 * margin) / font.width());
        page.write((margin, margin), &title, font, INK, Anchor::Left);
        for (column, label) in self.column_labels.iter().enumerate() {
            let x = origin.0 + column * (cell.0 + gap) + cell.0 / 2;
            let label = shorten(label, cell.0 / font.width());
            page.write((x, origin.1 - font.line()), &label, font, FAINT, Anchor::Centre);
        }
        for (index, image) in self.images.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            page.paste(origin.0 + column * (cell.0 + gap), origin.1 + row * (cell.1 + gap), image, factor);
        }
        for (row, lines) in row_labels.iter().enumerate() {
            let middle = origin.1 + row * (cell.1 + gap) + cell.1 / 2;
            let top = middle.saturating_sub(lines.len() * font.line() / 2);
            for (index, line) in lines.iter().enumerate() {
                let right = (origin.0 - margin, top + index * font.line());
                page.write(right, line, font, INK, Anchor::Right);
            }
        }
        let below = size.1.saturating_sub(margin + footer.len() * SMALL.line());
        for (index, line) in footer.iter().enumerate() {
            page.write((margin, below + index * SMALL.line()), line, SMALL, FAINT, Anchor::Left);
        }
        Ok(page)
    }

    /// Checks that a grid of `columns` images per row, each of `width` by `height` pixels, can be drawn before the
    /// images exist, with room for the longest footer.
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    pub fn check_size(&self, columns: usize, width: usize, height: usize) -> Result<(), PictureError> {
        let layout = self.layout(columns, (width, height));
        let footer = layout.font.line() + FOOTER_LINES * SMALL.line();
        check_size(layout.size.0, layout.size.1.saturating_add(footer))
    }

    /// Images a row, and their width and height.
    fn columns_and_size(&self) -> Result<(usize, (usize, usize)), PictureError> {
        let (rows, count) = (self.row_labels.len(), self.images.len());
        let Some(first) = self.images.first() else { return Err(content("at least one image", "none")) };
        if rows == 0 || !count.is_multiple_of(rows) {
            return Err(content(
                format!("images for {rows} rows of equal length"),
                format!("{count} images"),
            ));
        }
        let (columns, labels) = (count / rows, self.column_labels.len());
        if labels != 0 && labels != columns {
            return Err(content(format!("{columns} column labels or none"), labels.to_string()));
        }
        let size = |it: &Rgb8| (it.width() as usize, it.height() as usize);
        match self.images.iter().find(|it| size(it) != size(first)) {
            Some(other) => Err(content("images of one size", format!("{first:?} and {other:?}"))),
            None => Ok((columns, size(first))),
        }
    }

    fn layout(&self, columns: usize, image: (usize, usize)) -> Layout {
        let rows = self.row_labels.len();
        let factor = (COMFORTABLE / image.0.max(image.1).max(1)).max(1);
        let cell = (image.0 * factor, image.1 * factor);
        let side = cell.0.min(cell.1);
        let font = match side {
            ..96 => SMALL,
            96..384 => MEDIUM,
            _ => LARGE,
        };
        let gap = (side / 32).max(2);
        let margin = font.line() + font.line() / 2;

        let lines = (cell.1 / font.line()).clamp(1, LABEL_LINES);
        let row_labels: Vec<_> = self.row_labels.iter().map(|it| wrap(it, LABEL_LETTERS, lines)).collect();
        let letters = row_labels.iter().flatten().map(|it| it.chars().count()).max().unwrap_or(0);
        let left = if letters == 0 { margin } else { 2 * margin + letters * font.width() };
        let titled = 2 * margin + font.width() * self.title.chars().count().min(LABEL_LETTERS);
        let width = columns.saturating_mul(cell.0 + gap).saturating_add(left + margin - gap).max(titled);

        let footer = wrap(self.footer, (width - 2 * margin) / SMALL.width(), FOOTER_LINES);
        let heading = if self.title.is_empty() { 0 } else { 2 * font.line() };
        let names = if self.column_labels.is_empty() { 0 } else { font.line() };
        let small_print = if footer.is_empty() { 0 } else { font.line() + footer.len() * SMALL.line() };
        let origin = (left, margin + heading + names);
        let height = rows.saturating_mul(cell.1 + gap).saturating_add(origin.1 + small_print + margin - gap);
        Layout { factor, font, cell, gap, margin, origin, size: (width, height), row_labels, footer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [u8; 3] = [200, 0, 0];

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    /// Left, top, right and bottom of all pixels that are `wanted`, ends excluded.
    fn bounds(page: &Rgb8, wanted: impl Fn([u8; 3]) -> bool) -> (u32, u32, u32, u32) {
        let all = (0..page.height()).flat_map(|y| (0..page.width()).map(move |x| (x, y)));
        let found = all.filter(|&(x, y)| page.pixel(x, y).is_some_and(&wanted));
        found.fold((u32::MAX, u32::MAX, 0, 0), |(left, top, right, bottom), (x, y)| {
            (left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1))
        })
    }

    #[test]
    fn a_bare_grid_is_margins_cells_and_gaps() {
        let images = vec![Rgb8::filled(32, 32, RED).unwrap(); 6];
        let page =
            Grid { row_labels: &labels(&["", ""]), images: &images, ..Grid::default() }.draw().unwrap();
        // Enlarged four times to 128; margin 25, gap 4.
        assert_eq!((page.width(), page.height()), (25 + 3 * 128 + 2 * 4 + 25, 25 + 2 * 128 + 4 + 25));
        assert_eq!(bounds(&page, |it| it == RED), (25, 25, page.width() - 25, page.height() - 25));
        assert_eq!([25 + 128, 25 + 128 + 4].map(|x| page.pixel(x, 25)), [Some(PAPER), Some(RED)]);
    }

    #[test]
    fn text_stays_inside_its_own_space() {
        for size in [8, 32, 70, 100, 256, 512] {
            let images = vec![Rgb8::filled(size, size, RED).unwrap(); 4];
            let grid = Grid {
                row_labels: &labels(&["American Staffordshire terrier with a very long name", "猫 cat"]),
                column_labels: &labels(&["seed 0", "a column label that is far too long for any column"]),
                images: &images,
                title: &"a title that is far too long ".repeat(9),
                footer: &"small print ".repeat(90),
            };
            let page = grid.draw().unwrap();
            grid.check_size(2, size, size).unwrap();
            let margin = grid.layout(2, (size, size)).margin as u32;
            let (left, top, right, bottom) = bounds(&page, |it| it == RED);
            let ink = bounds(&page, |it| it == INK || it == FAINT);
            assert_eq!(right, page.width() - margin, "size {size}");
            assert!(
                ink.0 >= margin && ink.1 >= margin && ink.0 < left && ink.1 < top,
                "size {size}: {ink:?}"
            );
            assert!(
                ink.2 <= right && ink.3 <= page.height() - margin && ink.3 > bottom,
                "size {size}: {ink:?}"
            );
            let red = page.as_bytes().as_chunks::<3>().0.iter().filter(|it| **it == RED).count();
            assert_eq!(red, 4 * (size * (128 / size).max(1)).pow(2), "text covers an image of size {size}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let images = vec![Rgb8::filled(4, 4, RED).unwrap(); 4];
        let mixed = vec![Rgb8::filled(4, 4, RED).unwrap(), Rgb8::filled(4, 5, RED).unwrap()];
        let (one, two, three) = (labels(&["a"]), labels(&["a", "b"]), labels(&["a", "b", "c"]));
        let none: &[String] = &[];
        for (images, row_labels, column_labels, expected) in [
            (&[][..], &two[..], none, "at least one image"),
            (&images, none, none, "0 rows"),
            (&images, &three, none, "3 rows"),
            (&images, &two, &three, "2 column labels"),
            (&mixed, &one, none, "one size"),
        ] {
            let error = Grid { row_labels, column_labels, images, ..Grid::default() }.draw().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let many = Grid { row_labels: &two, ..Grid::default() };
        assert!(matches!(many.check_size(300, 512, 512), Err(PictureError::Size { .. })));
        assert!(many.check_size(usize::MAX, 512, 512).is_err());
    }
}
