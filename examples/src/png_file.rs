//! PNG files that carry the settings they were made with, as key-value text.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Filter, Transformations};

use crate::atomic_file;
use crate::picture::Picture;

/// Writes `picture` to `path` with `text` as key-value pairs, for instance `("ddt:settings", json)`.
///
/// Equal input gives equal bytes: no date is stored.
/// ASCII values become `tEXt` chunks, which every reader knows; others become `iTXt` (UTF-8).
///
/// # Errors
///
/// A key that PNG does not allow, and as [`atomic_file::write`].
pub fn write(path: &Path, picture: &Picture, text: &[(&str, &str)]) -> Result<()> {
    atomic_file::write(path, &encode(picture, text)?)
}

/// The bytes of a PNG file, as [`write()`] writes them.
///
/// # Errors
///
/// If a key is not 1 to 79 printable ASCII characters, or a value holds a NUL.
pub fn encode(picture: &Picture, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (width, height) = (u32::try_from(picture.width())?, u32::try_from(picture.height())?);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    encoder.set_filter(Filter::Adaptive);
    for (key, value) in text {
        let printable = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        ensure!(
            (1..=79).contains(&key.len()) && printable && key.trim() == *key,
            "png text key: expected 1 to 79 printable ASCII characters, got {key:?}"
        );
        ensure!(!value.contains('\0'), "png text {key:?}: expected a value without NUL characters");
        if value.is_ascii() {
            encoder.add_text_chunk((*key).to_owned(), (*value).to_owned())?;
        } else {
            encoder.add_itxt_chunk((*key).to_owned(), (*value).to_owned())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.pixels())?;
    writer.finish()?;
    Ok(bytes)
}

/// Reads a picture and its text back.
///
/// Other kinds of PNG (palette, grey, 16 bits) are refused: this reads what [`write()`] wrote.
///
/// # Errors
///
/// If the file cannot be read, is no PNG, is damaged, or is not 8-bit RGB.
pub fn read(path: &Path) -> Result<(Picture, Vec<(String, String)>)> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    decode(BufReader::new(file)).with_context(|| format!("cannot read {}", path.display()))
}

fn decode(source: impl std::io::BufRead + std::io::Seek) -> Result<(Picture, Vec<(String, String)>)> {
    let mut decoder = Decoder::new(source);
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info()?;
    let kind = reader.output_color_type();
    ensure!(kind == (ColorType::Rgb, BitDepth::Eight), "expected an 8-bit RGB picture, got {kind:?}");
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let frame = reader.next_frame(&mut pixels)?;
    reader.finish()?;
    let picture =
        Picture::from_pixels(usize::try_from(frame.width)?, usize::try_from(frame.height)?, pixels)?;
    let info = reader.info();
    let mut text = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        text.push((chunk.keyword.clone(), chunk.text.clone()));
    }
    for chunk in &info.utf8_text {
        text.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    Ok((picture, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture::from_pixels(5, 3, (0..45).map(|i| i * 5).collect()).unwrap()
    }

    #[test]
    fn pixels_and_text_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let text = [("ddt:settings", "{\"seed\": 7,\n \"class\": [207]}"), ("Title", "café – 猫")];
        write(&path, &picture(), &text).unwrap();
        let (read_picture, read_text) = read(&path).unwrap();
        assert_eq!(read_picture, picture());
        let read_text: Vec<(&str, &str)> = read_text.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(read_text, text);
        assert_eq!(encode(&picture(), &text).unwrap(), std::fs::read(&path).unwrap());
    }

    #[test]
    fn bad_keys_and_values_are_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let long = "k".repeat(80);
        for text in [("", "v"), (" k", "v"), (long.as_str(), "v"), ("clé", "v"), ("k\n", "v"), ("k", "a\0b")]
        {
            assert!(write(&path, &picture(), &[text]).is_err(), "{text:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let bytes = encode(&picture(), &[("k", "v")]).unwrap();
        for length in [0, 7, 20, bytes.len() / 2, bytes.len() - 16] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = format!("{:#}", read(&path).unwrap_err());
            assert!(message.contains("a.png"), "{message}");
        }
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x20;
        std::fs::write(&path, &flipped).unwrap();
        assert!(read(&path).is_err());
    }
}
