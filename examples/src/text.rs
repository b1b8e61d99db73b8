//! Text in a fixed 8 x 8 font: glyphs, shortening and wrapping.

use font8x8::{BASIC_FONTS, GREEK_FONTS, LATIN_FONTS, UnicodeFonts};

/// Width and height of a letter in pixels, before scaling.
pub const GLYPH: usize = 8;

const ELLIPSIS: char = '…';

/// Three dots on the base line; the font has none.
const ELLIPSIS_GLYPH: [u8; GLYPH] = [0, 0, 0, 0, 0, 0b1101_1011, 0b1101_1011, 0];

/// The rows of a letter from the top; bit 0 is the leftmost pixel.
///
/// Blanks and control characters are empty; letters that the font lacks become their plainest relative or `?`.
#[must_use]
pub fn glyph(letter: char) -> [u8; GLYPH] {
    if letter == ELLIPSIS {
        return ELLIPSIS_GLYPH;
    }
    let plain = match letter {
        '‘' | '’' | '‚' | '′' => '\'',
        '“' | '”' | '„' | '″' => '"',
        '‐' | '‑' | '‒' | '–' | '—' | '−' => '-',
        '•' => '·',
        other if other.is_whitespace() || other.is_control() => return [0; GLYPH],
        other => other,
    };
    let in_font = |letter| BASIC_FONTS.get(letter).or(LATIN_FONTS.get(letter)).or(GREEK_FONTS.get(letter));
    in_font(plain).or(in_font('?')).unwrap_or_default()
}

/// `line`, cut to at most `max_letters` letters with an ellipsis where something was cut.
#[must_use]
pub fn shorten(line: &str, max_letters: usize) -> String {
    if line.chars().count() <= max_letters {
        return line.to_owned();
    }
    let Some(kept) = max_letters.checked_sub(1) else { return String::new() };
    let mut short: String = line.chars().take(kept).collect();
    short.truncate(short.trim_end().len());
    short.push(ELLIPSIS);
    short
}

/// `text` in at most `max_lines` lines of at most `max_letters` letters, broken at blanks.
///
/// Words too long for a line, and a last line that should have gone on, are shortened.
#[must_use]
pub fn wrap(text: &str, max_letters: usize, max_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    if max_lines == 0 {
        return lines;
    }
    for word in text.split_whitespace() {
        let full = lines.len() == max_lines;
        match lines.last_mut() {
            Some(line) if full || line.chars().count() + 1 + word.chars().count() <= max_letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| shorten(line, max_letters)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_outside_the_font_fall_back() {
        let question = glyph('?');
        assert_ne!(question, [0; GLYPH]);
        assert_eq!(glyph('猫'), question);
        assert_eq!(glyph('\u{10ffff}'), question);
        assert_eq!(glyph('–'), glyph('-'));
        assert_ne!(glyph('é'), question);
        assert_ne!(glyph('…'), question);
        assert_eq!(glyph('\n'), [0; GLYPH]);
    }

    #[test]
    fn shortening_keeps_what_fits() {
        for (line, max_letters, expected) in [
            ("goldfish", 8, "goldfish"),
            ("goldfish", 7, "goldfi…"),
            ("red fox", 5, "red…"),
            ("éàüöñ", 3, "éà…"),
            ("goldfish", 1, "…"),
            ("goldfish", 0, ""),
            ("", 0, ""),
        ] {
            assert_eq!(shorten(line, max_letters), expected, "{line} in {max_letters}");
        }
    }

    #[test]
    fn wrapping_breaks_at_blanks_and_shortens_the_rest() {
        let check = |text: &str, max_letters: usize, max_lines: usize, expected: &[&str]| {
            assert_eq!(wrap(text, max_letters, max_lines), expected, "{text} in {max_letters} x {max_lines}");
        };
        check("golden retriever", 16, 3, &["golden retriever"]);
        check("golden retriever", 15, 3, &["golden", "retriever"]);
        check("golden retriever", 15, 1, &["golden retriev…"]);
        check("American Staffordshire terrier", 12, 2, &["American", "Staffordshi…"]);
        check("a b c d e", 3, 2, &["a b", "c…"]);
        check("", 5, 2, &[]);
        check("word", 5, 0, &[]);
        check("word", 0, 1, &[""]);
    }
}
