//! PNG files that carry the settings they were made with, as key-value text.

use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Seek, SeekFrom},
    path::Path,
};

use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Filter, Transformations};

use crate::rgb8::{MAX_PIXELS, PictureError, Rgb8, content};

/// The bytes of a PNG file with `text` as key-value pairs, for instance `("ddt:settings", json)`.
///
/// Equal input gives equal bytes: no date is stored.
/// ASCII values become `tEXt` chunks, which every reader knows; others become `iTXt` (UTF-8).
///
/// # Errors
/// [`PictureError::Content`] if a key is not 1 to 79 printable ASCII characters, or a value holds a NUL.
pub fn encode_png(picture: &Rgb8, text: &[(&str, &str)]) -> Result<Vec<u8>, PictureError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Balanced);
    encoder.set_filter(Filter::Adaptive);
    for (key, value) in text {
        let printable = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !(1..=79).contains(&key.len()) || !printable || key.trim() != *key {
            return Err(content("a PNG text key of 1 to 79 printable ASCII characters", format!("{key:?}")));
        }
        if value.contains('\0') {
            return Err(content(
                "a PNG text value without NUL characters",
                format!("one of {key:?} with NUL"),
            ));
        }
        if value.is_ascii() {
            encoder.add_text_chunk((*key).to_owned(), (*value).to_owned())?;
        } else {
            encoder.add_itxt_chunk((*key).to_owned(), (*value).to_owned())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_bytes())?;
    writer.finish()?;
    Ok(bytes)
}

/// Reads a picture and its text back.
///
/// Other kinds of PNG (palette, grey, 16 bits) are refused: this reads what [`encode_png`] makes.
///
/// # Errors
/// [`PictureError::Read`] if the file cannot be read, is no PNG, is damaged, or is not 8-bit RGB.
pub fn read_png(path: &Path) -> Result<(Rgb8, Vec<(String, String)>), PictureError> {
    let file = File::open(path).map_err(|error| refused(path, error.to_string()))?;
    decode(BufReader::new(file)).map_err(|reason| refused(path, reason))
}

/// [`read_png`] of bytes in memory; `path` is for messages.
///
/// # Errors
/// As [`read_png`].
pub fn parse_png(bytes: &[u8], path: &Path) -> Result<(Rgb8, Vec<(String, String)>), PictureError> {
    decode(Cursor::new(bytes)).map_err(|reason| refused(path, reason))
}

fn refused(path: &Path, reason: String) -> PictureError {
    PictureError::Read { path: path.to_owned(), reason }
}

/// No deflated stream grows by more than this factor.
const MAX_INFLATION: u64 = 1032;

/// Longest compressed text, in bytes when it is inflated.
const MAX_TEXT: usize = 2 << 20;

fn decode(mut source: impl BufRead + Seek) -> Result<(Rgb8, Vec<(String, String)>), String> {
    let text_of = |error: png::DecodingError| error.to_string();
    let file = source.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
    source.rewind().map_err(|error| error.to_string())?;
    let mut decoder = Decoder::new(source);
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(text_of)?;
    let kind = reader.output_color_type();
    if kind != (ColorType::Rgb, BitDepth::Eight) {
        return Err(format!("expected an 8-bit RGB picture, got {kind:?}"));
    }
    let size =
        reader.output_buffer_size().filter(|it| *it <= 3 * MAX_PIXELS).ok_or("the picture is too large")?;
    // Memory is for the asking: a header of a few bytes may state any size.
    let most = file.saturating_mul(MAX_INFLATION);
    if size as u64 > most {
        return Err(format!(
            "its {file} bytes inflate to at most {most}, expected {size} bytes of pixels; it is cut off or no picture"
        ));
    }
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(text_of)?;
    reader.finish().map_err(text_of)?;
    let picture = Rgb8::new(frame.width, frame.height, pixels).map_err(|error| error.to_string())?;
    let info = reader.info();
    let mut text: Vec<_> =
        info.uncompressed_latin1_text.iter().map(|it| (it.keyword.clone(), it.text.clone())).collect();
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT).map_err(text_of)?;
        text.push((chunk.keyword.clone(), chunk.get_text().map_err(text_of)?));
    }
    Ok((picture, text))
}

#[cfg(test)]
mod tests {
    use png::{Info, text_metadata::ITXtChunk};

    use super::*;

    fn picture() -> Rgb8 {
        Rgb8::new(5, 3, (0..45).map(|i| i * 5).collect()).unwrap()
    }

    #[test]
    fn pixels_and_text_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let text = [("ddt:settings", "{\"seed\": 7,\n \"class\": [207]}"), ("Title", "café – 猫")];
        let bytes = encode_png(&picture(), &text).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let (got, got_text) = read_png(&path).unwrap();
        assert_eq!(got, picture());
        let got_text: Vec<(&str, &str)> =
            got_text.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(got_text, text);
        assert_eq!(encode_png(&picture(), &text).unwrap(), bytes);
    }

    #[test]
    fn bad_keys_and_values_are_refused() {
        let long = "k".repeat(80);
        for text in [("", "v"), (" k", "v"), (&long, "v"), ("clé", "v"), ("k\n", "v"), ("k", "a\0b")] {
            assert!(matches!(encode_png(&picture(), &[text]), Err(PictureError::Content { .. })), "{text:?}");
        }
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let bytes = encode_png(&picture(), &[("k", "v")]).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x20;
        let cut = [0, 7, 20, bytes.len() / 2, bytes.len() - 16].map(|length| bytes[..length].to_vec());
        for bytes in cut.into_iter().chain([flipped]) {
            assert!(parse_png(&bytes, &path).is_err());
            std::fs::write(&path, &bytes).unwrap();
            let message = read_png(&path).unwrap_err().to_string();
            assert!(message.contains("a.png"), "{message}");
        }
        assert!(read_png(&folder.path().join("absent.png")).is_err());
    }
    #[test]
    fn a_bomb_is_refused_before_it_takes_memory() {
        let refused = |bytes: &[u8]| parse_png(bytes, Path::new("a.png")).unwrap_err().to_string();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 30_000, 10_000);
        encoder.set_color(ColorType::Rgb);
        encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, b"x").unwrap();
        let message = refused(&bytes);
        assert!(message.contains("expected 900000000 bytes of pixels"), "{message}");
        // Text that inflates to 4 MiB.
        let mut bytes = Vec::new();
        let mut info = Info::with_size(1, 1);
        info.color_type = ColorType::Rgb;
        let mut text = ITXtChunk::new("ddt:record", "a".repeat(4 << 20));
        text.compressed = true;
        info.utf8_text.push(text);
        let mut writer = Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
        writer.write_image_data(&[1, 2, 3]).unwrap();
        writer.finish().unwrap();
        assert!(bytes.len() < 32 << 10, "{}", bytes.len());
        let message = refused(&bytes);
        assert!(message.contains("space") || message.contains("limit"), "{message}");
    }
}
