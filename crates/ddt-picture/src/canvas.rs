//! Text and rectangles on an image, by `embedded-graphics`.

use std::convert::Infallible;

use embedded_graphics::{
    Drawable, Pixel,
    draw_target::DrawTarget,
    geometry::{OriginDimensions, Point, Size},
    mono_font::{
        MonoFont, MonoTextStyle,
        iso_8859_1::{FONT_6X10, FONT_9X15, FONT_10X20},
    },
    pixelcolor::{Rgb888, RgbColor},
    primitives::Rectangle,
    text::{Alignment, Baseline, Text, TextStyleBuilder},
};

use crate::rgb8::Rgb8;

/// Ground of every page.
pub(crate) const PAPER: [u8; 3] = [250, 250, 248];
/// Colour of text.
pub(crate) const INK: [u8; 3] = [36, 36, 40];
/// Colour of small print.
pub(crate) const FAINT: [u8; 3] = [120, 120, 126];

/// A font of fixed width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Font(&'static MonoFont<'static>);

pub(crate) const SMALL: Font = Font(&FONT_6X10);
pub(crate) const MEDIUM: Font = Font(&FONT_9X15);
pub(crate) const LARGE: Font = Font(&FONT_10X20);

impl Font {
    /// Width of a letter in pixels.
    pub(crate) fn width(self) -> usize {
        self.0.character_size.width as usize
    }

    /// Distance of two lines in pixels.
    pub(crate) fn line(self) -> usize {
        self.0.character_size.height as usize + 2
    }
}

/// Which part of a line is at the given point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Left,
    Centre,
    Right,
}

impl OriginDimensions for Rgb8 {
    fn size(&self) -> Size {
        Size::new(self.width(), self.height())
    }
}

impl DrawTarget for Rgb8 {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            let at = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            if let Some(pixel) = at.and_then(|(x, y)| self.pixel_mut(x, y)) {
                *pixel = [colour.r(), colour.g(), colour.b()];
            }
        }
        Ok(())
    }
}

impl Rgb8 {
    /// Writes one line whose top is at `y`; parts outside are cut off.
    pub(crate) fn write(
        &mut self,
        (x, y): (usize, usize),
        line: &str,
        font: Font,
        colour: [u8; 3],
        anchor: Anchor,
    ) {
        let alignment = match anchor {
            Anchor::Left => Alignment::Left,
            Anchor::Centre => Alignment::Center,
            Anchor::Right => Alignment::Right,
        };
        let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Top).build();
        let letters = MonoTextStyle::new(font.0, rgb(colour));
        let plain: String = line.chars().map(plain).collect();
        let Ok(_) = Text::with_text_style(&plain, point(x, y), letters, style).draw(self);
    }

    /// Fills a rectangle whose top left corner is (`x`, `y`).
    pub(crate) fn fill(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), colour: [u8; 3]) {
        let area = Rectangle::new(point(x, y), Size::new(width as u32, height as u32));
        let Ok(()) = self.fill_solid(&area, rgb(colour));
    }
}

fn rgb([red, green, blue]: [u8; 3]) -> Rgb888 {
    Rgb888::new(red, green, blue)
}

fn point(x: usize, y: usize) -> Point {
    let coordinate = |it: usize| i32::try_from(it).unwrap_or(i32::MAX);
    Point::new(coordinate(x), coordinate(y))
}

/// The nearest letter that the fonts (ISO 8859-1) have; line breaks become blanks.
fn plain(letter: char) -> char {
    match letter {
        '‘' | '’' | '‚' | '′' => '\'',
        '“' | '”' | '„' | '″' => '"',
        '‐' | '‑' | '‒' | '–' | '—' | '−' => '-',
        other if other.is_whitespace() || other.is_control() => ' ',
        other => other,
    }
}

/// `line`, cut to at most `letters` letters, with an ellipsis where something was cut.
pub(crate) fn shorten(line: &str, letters: usize) -> String {
    if line.chars().count() <= letters {
        return line.to_owned();
    }
    let start: String = line.chars().take(letters.saturating_sub(2)).collect();
    format!("{}..", start.trim_end()).chars().take(letters).collect()
}

/// `text` in at most `lines` lines of at most `letters` letters, broken at blanks.
///
/// Words too long for a line, and a last line with more words than fit, are shortened.
pub(crate) fn wrap(text: &str, letters: usize, lines: usize) -> Vec<String> {
    let mut wrapped: Vec<String> = Vec::new();
    if lines == 0 {
        return wrapped;
    }
    for word in text.split_whitespace() {
        let full = wrapped.len() == lines;
        match wrapped.last_mut() {
            Some(line) if full || line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => wrapped.push(word.to_owned()),
        }
    }
    wrapped.iter().map(|line| shorten(line, letters)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_in_its_box() {
        for (anchor, x) in [(Anchor::Left, 10), (Anchor::Centre, 19), (Anchor::Right, 27)] {
            let mut picture = Rgb8::filled(60, 30, PAPER).unwrap();
            picture.write((x, 5), "Ag", MEDIUM, INK, anchor);
            let inked = |x, y| picture.pixel(x, y) == Some(INK);
            let all: Vec<_> =
                (0..30).flat_map(|y| (0..60).map(move |x| (x, y))).filter(|&(x, y)| inked(x, y)).collect();
            assert!(all.len() > 20, "{anchor:?}");
            assert!(all.iter().all(|&(x, y)| (9..30).contains(&x) && (5..20).contains(&y)), "{anchor:?}");
        }
        let mut picture = Rgb8::filled(4, 4, PAPER).unwrap();
        picture.write((usize::MAX, usize::MAX), "A\n猫", LARGE, INK, Anchor::Left);
        picture.fill((2, 1), (9, 9), INK);
        assert_eq!(
            (picture.pixel(1, 1), picture.pixel(2, 1), picture.pixel(3, 3)),
            (Some(PAPER), Some(INK), Some(INK))
        );
    }

    #[test]
    fn lines_are_shortened_and_wrapped() {
        for (line, letters, expected) in [
            ("goldfish", 8, "goldfish"),
            ("goldfish", 7, "goldf.."),
            ("red fox", 6, "red.."),
            ("éàüöñ", 3, "é.."),
            ("goldfish", 1, "."),
            ("goldfish", 0, ""),
        ] {
            assert_eq!(shorten(line, letters), expected, "{line} in {letters}");
        }
        let check = |text: &str, letters: usize, lines: usize, expected: &[&str]| {
            assert_eq!(wrap(text, letters, lines), expected, "{text} in {letters} x {lines}");
        };
        check("golden retriever", 16, 3, &["golden retriever"]);
        check("golden retriever", 15, 3, &["golden", "retriever"]);
        check("golden retriever", 15, 1, &["golden retrie.."]);
        check("a b c d e", 3, 2, &["a b", "c.."]);
        check("", 5, 2, &[]);
        check("word", 5, 0, &[]);
    }
}
