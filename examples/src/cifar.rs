//! Labelled photos from an archive of class folders, such as CIFAR-10 as JPEG files.
//!
//! Expected inside the `.tar.gz`: `train/<class>/<name>.jpg` and `test/<class>/<name>.jpg` (or `.png`), every
//! image 32 x 32. Nothing is unpacked to disk, so names inside the archive cannot escape anywhere.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use rayon::prelude::*;

/// Width and height of every image.
pub const SIDE: usize = 32;

/// Bytes of one image: (`SIDE`, `SIDE`, 3).
pub const IMAGE_BYTES: usize = SIDE * SIDE * 3;

/// Largest image file, total of all image files, and number of entries that are read: far above any use.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_TOTAL_BYTES: u64 = 1 << 30;
const MAX_ENTRIES: usize = 1 << 20;

/// Images of one split with their labels, sorted by class and file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CifarSplit {
    /// (`labels.len()`, 32, 32, 3), 0 to 255.
    pub images: Vec<u8>,
    /// The class of each image: an index into `class_names`.
    pub labels: Vec<u8>,
    /// Names of the class folders, sorted; the same in both splits.
    pub class_names: Vec<String>,
}

/// Both splits of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cifar {
    /// Images to train on.
    pub train: CifarSplit,
    /// Images kept back.
    pub test: CifarSplit,
}

/// An image file as it lies in the archive; the order of fields is the order of images.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    class: String,
    name: String,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Entries {
    train: Vec<Entry>,
    test: Vec<Entry>,
    classes: BTreeSet<String>,
}

/// Reads both splits of the archive at `path`, decoding on all processors.
///
/// The result does not depend on the order of the archive.
///
/// # Errors
///
/// If the archive cannot be read or is damaged, holds no images, lacks images of a class in one split, has more
/// than 256 classes, or if an image is damaged or not 32 x 32 (the first such image is named).
pub fn read_cifar(path: &Path) -> Result<Cifar> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_archive(BufReader::with_capacity(1 << 18, file))
        .with_context(|| format!("cannot read images from {}", path.display()))
}

fn read_archive(source: impl io::BufRead) -> Result<Cifar> {
    let Entries { train, test, classes } = read_entries(MultiGzDecoder::new(source))?;
    let class_names: Vec<String> = classes.into_iter().collect();
    ensure!(
        !class_names.is_empty(),
        "expected files named train/<class>/<name>.jpg and test/<class>/<name>.jpg, found none"
    );
    ensure!(class_names.len() <= 256, "expected at most 256 classes, got {}", class_names.len());
    Ok(Cifar {
        train: decode_split("train", train, &class_names)?,
        test: decode_split("test", test, &class_names)?,
    })
}

fn read_entries(source: impl Read) -> Result<Entries> {
    let damaged = "the archive is damaged or cut short; fetch it again";
    let mut found = Entries::default();
    let mut total = 0;
    let mut archive = tar::Archive::new(source);
    for (count, entry) in archive.entries().context(damaged)?.enumerate() {
        let mut entry = entry.context(damaged)?;
        ensure!(count < MAX_ENTRIES, "expected at most {MAX_ENTRIES} files in the archive");
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let (split, class, name) = match parts.as_slice() {
            [split @ ("train" | "test"), class] if entry.header().entry_type().is_dir() => {
                (*split, *class, None)
            }
            [split @ ("train" | "test"), class, name] if is_image(name) => (*split, *class, Some(*name)),
            _ => continue,
        };
        ensure!(!class.chars().any(char::is_control), "class folder {class:?} has control characters");
        found.classes.insert(class.to_owned());
        let Some(name) = name else { continue };
        ensure!(
            entry.header().entry_type().is_file(),
            "{path}: expected a plain file, got a link or a folder"
        );

        let size = entry.size();
        total += size;
        ensure!(size <= MAX_FILE_BYTES, "{path}: expected at most {MAX_FILE_BYTES} bytes, got {size}");
        ensure!(
            total <= MAX_TOTAL_BYTES,
            "expected at most {MAX_TOTAL_BYTES} bytes of images in the archive"
        );
        let mut bytes = Vec::with_capacity(usize::try_from(size)?);
        entry.read_to_end(&mut bytes).with_context(|| format!("{path}: {damaged}"))?;
        let entries = if split == "train" { &mut found.train } else { &mut found.test };
        entries.push(Entry { class: class.to_owned(), name: name.to_owned(), bytes });
    }
    // What follows the last file is empty, but gzip's checksum stands behind it.
    io::copy(&mut archive.into_inner().take(MAX_TOTAL_BYTES), &mut io::sink()).context(damaged)?;
    Ok(found)
}

/// Hidden files, which some systems leave beside the real ones, are no images.
fn is_image(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    !name.starts_with('.') && ["jpg", "jpeg", "png"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

fn decode_split(split: &str, mut entries: Vec<Entry>, class_names: &[String]) -> Result<CifarSplit> {
    entries.sort_unstable();
    let present: BTreeSet<&str> = entries.iter().map(|entry| entry.class.as_str()).collect();
    let missing: Vec<&str> =
        class_names.iter().map(String::as_str).filter(|name| !present.contains(name)).collect();
    ensure!(
        missing.is_empty(),
        "expected images of every class in {split}/, got none of {}",
        missing.join(", ")
    );

    let labels = entries
        .iter()
        .map(|entry| Ok(u8::try_from(class_names.binary_search(&entry.class).unwrap_or_default())?))
        .collect::<Result<_>>()?;
    let mut images = vec![0; entries.len() * IMAGE_BYTES];
    let failure = images
        .par_chunks_exact_mut(IMAGE_BYTES)
        .zip(&entries)
        .filter_map(|(pixels, entry)| {
            let result = decode(&entry.bytes, pixels);
            result.err().map(|error| error.context(format!("{split}/{}/{}", entry.class, entry.name)))
        })
        .find_first(|_| true);
    match failure {
        Some(error) => Err(error),
        None => Ok(CifarSplit { images, labels, class_names: class_names.to_vec() }),
    }
}

fn decode(bytes: &[u8], pixels: &mut [u8]) -> Result<()> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 << 20);
    reader.limits(limits);
    let decoder = reader.into_decoder().context("not a readable JPEG or PNG image")?;
    let (width, height) = decoder.dimensions();
    if (width, height) != (SIDE as u32, SIDE as u32) {
        bail!("expected an image of {SIDE} x {SIDE} pixels, got {width} x {height}");
    }
    let image = DynamicImage::from_decoder(decoder).context("the image is damaged")?.into_rgb8();
    ensure!(
        image.as_raw().len() == pixels.len(),
        "expected {} bytes, got {}",
        pixels.len(),
        image.as_raw().len()
    );
    pixels.copy_from_slice(image.as_raw());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = image::RgbImage::from_pixel(width, height, image::Rgb(colour));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn jpeg(grey: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = image::GrayImage::from_pixel(32, 32, image::Luma([grey]));
        image.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    /// A gzipped tar; names that end in `/` are folders.
    fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
            header.set_entry_type(kind);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&builder.into_inner().unwrap()).unwrap();
        gzip.finish().unwrap()
    }

    fn good() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("train/", vec![]),
            ("train/cat/0001.png", png(32, 32, [1, 2, 3])),
            ("./train/ant/0000.JPG", jpeg(77)),
            ("train/cat/0000.png", png(32, 32, [4, 5, 6])),
            ("train/cat/._0000.png", b"left by a file manager".to_vec()),
            ("test/cat/0000.png", png(32, 32, [7, 8, 9])),
            ("test/ant/0000.jpeg", jpeg(200)),
            ("README.md", b"photos".to_vec()),
        ]
    }

    #[track_caller]
    fn refused(files: &[(&str, Vec<u8>)], expected: &[&str]) {
        let message = format!("{:#}", read_archive(archive(files).as_slice()).unwrap_err());
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn images_are_sorted_by_class_and_name() {
        let Cifar { train, test } = read_archive(archive(&good()).as_slice()).unwrap();
        assert_eq!(train.class_names, ["ant", "cat"]);
        assert_eq!(test.class_names, train.class_names);
        assert_eq!(
            (train.labels.as_slice(), test.labels.as_slice()),
            ([0, 1, 1].as_slice(), [0, 1].as_slice())
        );
        assert_eq!(train.images.len(), 3 * IMAGE_BYTES);
        let first = |split: &CifarSplit, index: usize| split.images[index * IMAGE_BYTES..][..3].to_vec();
        assert!(first(&train, 0).iter().all(|grey| grey.abs_diff(77) <= 2));
        assert_eq!([first(&train, 1), first(&train, 2), first(&test, 1)], [[4, 5, 6], [1, 2, 3], [7, 8, 9]]);

        let mut reversed = good();
        reversed.reverse();
        let again = read_archive(archive(&reversed).as_slice()).unwrap();
        assert_eq!(again, Cifar { train, test });
    }

    #[test]
    fn faulty_images_are_named() {
        let with = |path: &'static str, bytes: Vec<u8>| [good(), vec![(path, bytes)]].concat();
        let mut cut = png(32, 32, [1; 3]);
        cut.truncate(50);
        refused(&with("train/cat/9.png", cut), &["train/cat/9.png"]);
        refused(&with("test/ant/9.jpg", b"no image".to_vec()), &["test/ant/9.jpg", "not a readable"]);
        refused(&with("test/ant/9.png", png(32, 31, [0; 3])), &["test/ant/9.png", "32 x 32", "got 32 x 31"]);
        refused(&with("test/ant/9.png", png(4000, 4000, [0; 3])), &["got 4000 x 4000"]);
        refused(&with("test/ant/9.jpg", vec![0; 1 + (1 << 20)]), &["at most 1048576 bytes"]);
    }

    #[test]
    fn missing_classes_are_named() {
        refused(
            &[good(), vec![("train/dog/1.png", png(32, 32, [0; 3]))]].concat(),
            &["test/", "none of dog"],
        );
        refused(&[good(), vec![("test/emu/", vec![])]].concat(), &["train/", "none of emu"]);
        refused(&[("photos/cat.jpg", jpeg(1))], &["found none"]);
        refused(&[], &["found none"]);
    }

    #[test]
    fn damaged_archives_are_errors() {
        let whole = archive(&good());
        for length in (0..whole.len()).step_by(7).chain(whole.len() - 8..whole.len()) {
            assert!(read_archive(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
        let mut flipped = whole.clone();
        let checksum = flipped.len() - 6;
        flipped[checksum] ^= 1;
        let message = format!("{:#}", read_archive(flipped.as_slice()).unwrap_err());
        assert!(message.contains("damaged"), "{message}");
        assert!(read_cifar(Path::new("no/such.tar.gz")).unwrap_err().to_string().contains("no/such.tar.gz"));
    }
}
