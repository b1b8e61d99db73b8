//! Decoding: pictures of every format and mode, damaged ones, and bytes that are not pictures.

use std::path::Path;

use ddt_data::{DataError, ImageError, Limits, decode_rgb8, read_rgb8};
use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgba};
use proptest::prelude::*;

use crate::images::{difference, encode, gradient, jpeg};

fn decode(bytes: &[u8]) -> Result<ddt_data::Rgb8, ImageError> {
    decode_rgb8(bytes, &Limits::default())
}

#[test]
fn every_format_and_mode_is_decoded_as_pillow_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    // Lossless formats have no freedom; JPEG and lossy WebP decoders differ in last bits.
    for (name, ending, mean_at_most, at_most) in [
        ("cmyk", "jpg", 1.0, 16),
        ("progressive", "jpg", 1.0, 16),
        ("grey", "jpg", 1.0, 16),
        ("rotated", "jpg", 1.0, 16),
        ("lossy", "webp", 1.0, 16),
        ("alpha", "webp", 0.0, 0),
        ("animated", "webp", 0.0, 0),
        ("colour", "bmp", 0.0, 0),
        ("palette", "bmp", 0.0, 0),
    ] {
        let got = read_rgb8(&folder.join(format!("{name}.{ending}")), &Limits::default()).unwrap();
        let want = image::open(folder.join(format!("{name}.png"))).unwrap().to_rgb8();
        assert_eq!((got.width(), got.height()), want.dimensions(), "{name}");
        let (mean, largest) = difference(got.as_bytes(), want.as_raw());
        assert!(mean <= mean_at_most && largest <= at_most, "{name}: mean {mean}, largest {largest}");
    }
}

#[test]
fn pngs_of_every_mode_become_rgb() {
    let grey = |it: u8| [it; 3].to_vec();
    let pixel = |picture: DynamicImage| decode(&encode(picture, ImageFormat::Png)).unwrap().into_bytes();
    assert_eq!(pixel(DynamicImage::ImageLuma8(ImageBuffer::from_pixel(1, 1, Luma([77])))), grey(77));
    // Alpha is dropped, whatever it is.
    assert_eq!(pixel(DynamicImage::ImageLumaA8(ImageBuffer::from_pixel(1, 1, LumaA([77, 0])))), grey(77));
    assert_eq!(pixel(DynamicImage::ImageRgba8(ImageBuffer::from_pixel(1, 1, Rgba([1, 2, 3, 0])))), [1, 2, 3]);
    // Of 16 bits the high byte stays: 0x01ff is 1, not 2.
    let sixteen = [0x01ff, 0x80fe, 0xffff];
    let rgb = ImageBuffer::from_pixel(1, 1, image::Rgb(sixteen));
    assert_eq!(pixel(DynamicImage::ImageRgb16(rgb)), [1, 0x80, 0xff]);
    let luma = ImageBuffer::from_pixel(1, 1, Luma([0x80fe]));
    assert_eq!(pixel(DynamicImage::ImageLuma16(luma)), grey(0x80));
    let picture = gradient(31, 17, 3);
    assert_eq!(pixel(picture.clone().into()), picture.into_raw());
}

#[test]
fn a_cut_file_is_an_error_wherever_it_is_cut() {
    let png = encode(gradient(50, 40, 1), ImageFormat::Png);
    // The last chunk, 12 bytes, holds nothing.
    for cut in (1..png.len() - 12).step_by(7) {
        let error = decode(&png[..cut]).unwrap_err().to_string();
        assert!(
            error.contains("PNG file is cut off") || error.contains("expected a JPEG, PNG"),
            "{cut}: {error}"
        );
    }
    let progressive = include_bytes!("../golden/progressive.jpg").to_vec();
    for jpeg in [jpeg(50, 40, 1), progressive] {
        for cut in 2..jpeg.len() {
            let error = decode(&jpeg[..cut]).unwrap_err().to_string();
            assert!(error.contains("JPEG file is cut off"), "{cut} of {}: {error}", jpeg.len());
        }
        // Bytes after the end do not matter.
        assert_eq!(decode(&[jpeg.as_slice(), b"more"].concat()).unwrap(), decode(&jpeg).unwrap());
    }
    for golden in [&include_bytes!("../golden/lossy.webp")[..], include_bytes!("../golden/colour.bmp")] {
        for cut in 1..golden.len() {
            let error = decode(&golden[..cut]).unwrap_err();
            assert!(!error.to_string().contains("panicked"), "{cut} of {}: {error}", golden.len());
        }
    }
    let error = decode(&include_bytes!("../golden/lossy.webp")[..100]).unwrap_err().to_string();
    assert!(error.contains("WebP file is cut off"), "{error}");
}

#[test]
fn damage_in_compressed_data_is_an_error_not_a_grey_area() {
    let whole = jpeg(200, 200, 1);
    let start = whole.windows(2).rposition(|it| it == [0xff, 0xda]).unwrap() + 14;
    let middle = start + (whole.len() - start) / 2;
    let replaced = |with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[middle..middle + with.len()].copy_from_slice(with);
        decode(&bytes).unwrap_err().to_string()
    };
    // A frame header amid the data, and a run of ones, which is no code.
    for error in [replaced(&[0xff, 0xc0]), replaced(&[0xff, 0].repeat(20))] {
        assert!(error.starts_with("damaged JPEG: "), "{error}");
    }
}

#[test]
fn a_bomb_is_refused_before_it_takes_memory() {
    let bomb = png_header(50_000, 50_000);
    let error = decode(&bomb).unwrap_err();
    assert_eq!(error.to_string(), "the image is 50000 x 50000, the limit is 89478485 pixels");
    let mut big = jpeg(16, 16, 0);
    let frame = big.windows(2).position(|it| it == [0xff, 0xc0]).unwrap();
    big[frame + 5..frame + 9].copy_from_slice(&[0xc3, 0x50, 0xc3, 0x50]);
    let error = decode(&big).unwrap_err().to_string();
    assert_eq!(error, "the image is 50000 x 50000, the limit is 89478485 pixels");
    let mut big = include_bytes!("../golden/colour.bmp").to_vec();
    big[18..26].copy_from_slice(&[0x50, 0xc3, 0, 0, 0x50, 0xc3, 0, 0]);
    assert_eq!(decode(&big).unwrap_err().to_string(), error);
    let few = Limits { max_pixels: 255, ..Limits::default() };
    assert!(decode_rgb8(&jpeg(16, 16, 0), &few).is_err());
    assert!(decode_rgb8(&jpeg(15, 17, 0), &few).is_ok());
}

/// The decoder panics on it, which stays inside.
#[test]
fn a_panic_of_a_decoder_is_an_error() {
    let error = decode(include_bytes!("../golden/separate-scans.jpg")).unwrap_err().to_string();
    assert!(error.starts_with("damaged JPEG: "), "{error}");
}

#[test]
fn a_palette_with_part_of_a_colour_is_an_error() {
    for (bytes, is_whole) in [(36, true), (37, false), (38, false), (0, false), (768, true), (771, false)] {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 9, 3);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Two);
        encoder.set_palette(vec![9; bytes]);
        encoder.set_trns(vec![1]);
        // The encoder may refuse as well.
        let Ok(mut writer) = encoder.write_header() else { continue };
        writer.write_image_data(&[0x11; 9]).unwrap();
        drop(writer);
        match decode(&png) {
            Ok(picture) => assert!(is_whole && picture.width() == 9),
            Err(error) => {
                // The decoder itself refuses the other lengths.
                let ours = format!("damaged PNG: a palette of {bytes} bytes, expected 3 for each");
                let expected = if matches!(bytes, 37 | 38) { ours.as_str() } else { "damaged PNG: " };
                assert!(!is_whole && error.to_string().starts_with(expected), "{bytes}: {error}");
            }
        }
    }
}

#[test]
fn a_webp_frame_that_is_larger_than_its_image_is_refused_before_it_takes_memory() {
    let lossy = include_bytes!("../golden/lossy.webp");
    let start = lossy.windows(3).position(|it| it == [0x9d, 0x01, 0x2a]).unwrap() - 3;
    let mut frame = lossy[start - 8..].to_vec();
    frame[14..18].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    let chunk = |kind: &[u8], content: &[u8]| {
        let size = (content.len() as u32).to_le_bytes();
        [kind, &size, content, &vec![0; content.len() % 2]].concat()
    };
    let webp = |chunks: &[Vec<u8>]| chunk(b"RIFF", &[b"WEBP", chunks.concat().as_slice()].concat());
    let canvas = |flags: u8| chunk(b"VP8X", &[flags, 0, 0, 0, 39, 0, 0, 23, 0, 0]);
    // The place 0, 0, the size 40 x 24, the time, no flags.
    let place = [0, 0, 0, 0, 0, 0, 39, 0, 0, 23, 0, 0, 9, 0, 0, 0];
    let animated = |frame: &[u8]| {
        let frame = chunk(b"ANMF", &[&place, frame].concat());
        webp(&[canvas(2), chunk(b"ANIM", &[0; 6]), frame])
    };
    let alpha = [chunk(b"ALPH", &[&[0], [9; 960].as_slice()].concat()), frame.clone()].concat();
    for file in [webp(&[canvas(0), frame.clone()]), animated(&frame), animated(&alpha)] {
        let error = decode(&file).unwrap_err().to_string();
        assert!(error.starts_with("damaged WebP: a frame of (16383, 16383) pixels"), "{error}");
    }
    // What was not changed is read in each of these ways.
    let frame = &lossy[start - 8..];
    let alpha = [chunk(b"ALPH", &[&[0], [9; 960].as_slice()].concat()), frame.to_vec()].concat();
    for file in [webp(&[canvas(0), frame.to_vec()]), animated(frame), animated(&alpha)] {
        assert_eq!(decode(&file).unwrap().width(), 40);
    }
}

/// A PNG that promises much and holds nothing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    drop(encoder.write_header().unwrap());
    bytes
}

#[test]
fn a_file_is_named_in_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let message =
        |name: &str| read_rgb8(&folder.path().join(name), &Limits::default()).unwrap_err().to_string();
    std::fs::write(folder.path().join("empty.jpg"), b"").unwrap();
    assert!(
        message("empty.jpg").ends_with("empty.jpg: expected a JPEG, PNG, WebP or BMP, got an empty file")
    );
    std::fs::write(folder.path().join("text.png"), b"hello").unwrap();
    assert!(message("text.png").contains("got a file that begins with [68, 65"));
    assert!(message("absent.png").contains("absent.png"));
    assert!(matches!(read_rgb8(folder.path(), &Limits::default()), Err(DataError::Layout { .. })));
    let small = Limits { max_bytes: 4, ..Limits::default() };
    let error = read_rgb8(&folder.path().join("text.png"), &small).unwrap_err();
    assert!(error.to_string().contains("has 5 bytes, the limit is 4"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(
        source in 0_usize..7,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = match source {
            0 => jpeg(20, 13, 5),
            1 => include_bytes!("../golden/progressive.jpg").to_vec(),
            2 => include_bytes!("../golden/cmyk.jpg").to_vec(),
            3 => encode(gradient(20, 13, 5), ImageFormat::Png),
            4 => include_bytes!("../golden/lossy.webp").to_vec(),
            5 => include_bytes!("../golden/palette.bmp").to_vec(),
            _ => vec![0xff; 300],
        };
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        bytes.truncate(cut.index(2 * bytes.len()).max(1));
        let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
        if let Err(error) = decode_rgb8(&bytes, &limits) {
            prop_assert!(!error.to_string().contains("panicked"), "{:?}", bytes);
        }
    }
}
