//! Zip archives: the `zip` crate finds the entries; any part of one is read by position.
//!
//! Entries are stored or deflated, in one volume that begins the file, as numpy and PyTorch write them.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};

use crc32fast::Hasher;
use flate2::bufread::DeflateDecoder;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::FileError;
use crate::error::{check_limit, clip};
use crate::limits::{MAX_ENTRIES, MAX_INFLATED_BYTES, MAX_INFLATION};
use crate::source::{Reader, Source, number};

/// One entry; its bytes are inside the file and overlap no other's.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Size of the content in bytes, when inflated.
    pub(crate) size: u64,
    /// Where its bytes begin in the file, and how many there are.
    start: u64,
    packed: u64,
    deflated: bool,
    /// Checksum of the content, where the file has one.
    pub(crate) crc: Option<u32>,
}

/// Reads the directory and checks every entry.
pub(crate) fn entries(source: &Source) -> Result<BTreeMap<String, Entry>, FileError> {
    check_counts(source)?;
    let failed = |error: ZipError| match error {
        ZipError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            FileError::io("read", source.path())(error)
        }
        ZipError::InvalidArchive(problem) => {
            fault(source, format!("{problem}; check that the file is complete"))
        }
        other => fault(source, format!("{other}; check that the file is complete")),
    };
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, BufReader::new(source.reader_at(0))).map_err(failed)?;
    if archive.has_duplicate_names() {
        return Err(fault(source, "two entries have the same name"));
    }
    let mut entries = BTreeMap::new();
    let mut places = Vec::new();
    for index in 0..archive.len() {
        let raw = archive.by_index_raw(index).map_err(failed)?;
        let name = std::str::from_utf8(raw.name_raw())
            .map_err(|_| fault(source, "the name of an entry is not UTF-8"))?;
        let broken = |problem: &str| fault(source, format!("entry `{}`: {problem}", clip(name)));
        let (size, packed) = (raw.size(), raw.compressed_size());
        let deflated = match raw.compression() {
            _ if raw.encrypted() => return Err(broken("it is encrypted")),
            CompressionMethod::Stored if size != packed => {
                return Err(broken("it is stored, but has two sizes"));
            }
            CompressionMethod::Stored => false,
            CompressionMethod::DEFLATE if size / MAX_INFLATION > packed => {
                return Err(broken("it cannot inflate to the size it states"));
            }
            CompressionMethod::DEFLATE => true,
            other => return Err(broken(&format!("method {other:?}, expected stored or deflated"))),
        };
        let start = raw.data_start().ok_or_else(|| broken("it has no beginning"))?;
        // The name follows the fixed part of the entry's own header.
        let own_name = source.read("the name of an entry", raw.header_start() + 30, name.len() as u64)?;
        if own_name != name.as_bytes() {
            return Err(broken("it has another name than in the directory"));
        }
        // `by_index_raw` has checked the sum.
        places.push((raw.header_start(), start + packed));
        entries.insert(name.to_string(), Entry { size, start, packed, deflated, crc: Some(raw.crc32()) });
    }
    places.sort_unstable();
    places.push((archive.central_directory_start(), u64::MAX));
    if places.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(fault(source, "an entry overlaps what follows it"));
    }
    Ok(entries)
}

/// Refuses counts above the limit: the `zip` crate allocates for as many entries as the file could hold.
///
/// Those of archives without zip64 records are below it.
fn check_counts(source: &Source) -> Result<(), FileError> {
    // The locator of a zip64 record, the end record, and the longest comment.
    let tail = source.len().min(20 + 22 + 0xffff);
    let bytes = source.read("the end of the archive", source.len() - tail, tail)?;
    for locator in bytes.windows(20).filter(|it| it.starts_with(b"PK\x06\x07")) {
        let record = number(locator, 8, 8);
        // The crate refuses a record that is not there.
        let Ok(count) = source.read("the number of entries", record.saturating_add(32), 8) else { continue };
        check_limit(source.path(), "the number of zip entries", MAX_ENTRIES, number(&count, 0, 8))?;
    }
    Ok(())
}

fn fault(source: &Source, problem: impl AsRef<str>) -> FileError {
    FileError::unusable(source.path(), format!("invalid zip archive: {}", problem.as_ref()))
}

impl Entry {
    /// A whole file as one stored entry.
    pub(crate) fn whole(source: &Source) -> Self {
        Self { size: source.len(), start: 0, packed: source.len(), deflated: false, crc: None }
    }

    /// Reads a part of the content into memory; the checksum is compared when the part is the whole.
    pub(crate) fn read(&self, source: &Source, from: u64, len: u64) -> Result<Vec<u8>, FileError> {
        if self.deflated {
            check_limit(source.path(), "the size of a compressed entry", MAX_INFLATED_BYTES, self.size)?;
        }
        let failed = |problem| fault(source, format!("an entry: {problem}"));
        if from.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(failed(format!("{len} bytes at {from} of its {}", self.size)));
        }
        let mut content = Content::new(source, self);
        let mut bytes = vec![0; len as usize];
        content.skip(from).and_then(|()| content.fill(&mut bytes)).map_err(failed)?;
        if self.deflated {
            // Some of it has been inflated already: so that the checksum can be compared, the rest is too.
            content.skip(content.left()).map_err(failed)?;
        }
        content.finish().map_err(failed)?;
        Ok(bytes)
    }
}

/// The content of an entry, inflated as it is read.
pub(crate) struct Content<'a> {
    packed: Packed<'a>,
    entry: &'a Entry,
    hasher: Hasher,
    /// Bytes read or skipped.
    position: u64,
    /// Whether none was skipped.
    whole: bool,
}

enum Packed<'a> {
    Stored(Take<Reader<'a>>),
    Deflated(Box<DeflateDecoder<BufReader<Take<Reader<'a>>>>>),
}

impl<'a> Content<'a> {
    pub(crate) fn new(source: &'a Source, entry: &'a Entry) -> Self {
        let bytes = source.reader_at(entry.start).take(entry.packed);
        let packed = match entry.deflated {
            false => Packed::Stored(bytes),
            true => Packed::Deflated(Box::new(DeflateDecoder::new(BufReader::new(bytes)))),
        };
        Self { packed, entry, hasher: Hasher::new(), position: 0, whole: true }
    }

    /// Bytes that have not been read.
    pub(crate) fn left(&self) -> u64 {
        self.entry.size - self.position
    }

    /// Fills `buffer`, or says why it cannot.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        if self.left() < buffer.len() as u64 {
            return Err(format!("it ends after its {} bytes", self.entry.size));
        }
        let read = match &mut self.packed {
            Packed::Stored(bytes) => bytes.read_exact(buffer),
            Packed::Deflated(decoder) => decoder.read_exact(buffer),
        };
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("it ends before the {} bytes it states", self.entry.size),
            _ => format!("it cannot be read: {error}"),
        })?;
        self.hasher.update(buffer);
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// Skips `bytes` bytes, without reading them if they are stored.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > self.left() {
            return Err(format!("it ends after its {} bytes", self.entry.size));
        }
        if let Packed::Stored(stored) = &mut self.packed {
            self.position += bytes;
            self.whole &= bytes == 0;
            let begin = SeekFrom::Start(self.entry.start + self.position);
            stored.get_mut().seek(begin).map_err(|error| error.to_string())?;
            stored.set_limit(self.entry.size - self.position);
            return Ok(());
        }
        let mut skipped = vec![0; bytes.min(1 << 16) as usize];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(skipped.len() as u64);
            self.fill(&mut skipped[..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    /// After the last byte, checks that the content ends there and compares its checksum; earlier it does
    /// nothing.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        if self.left() > 0 {
            return Ok(());
        }
        if let Packed::Deflated(decoder) = &mut self.packed {
            let more = decoder.read(&mut [0]).map_err(|error| format!("it cannot be read: {error}"))?;
            if more > 0 {
                return Err(format!("it continues after the {} bytes it states", self.entry.size));
            }
        }
        match self.entry.crc {
            Some(crc) if self.whole && self.hasher.clone().finalize() != crc => {
                Err("it does not match its checksum; the file is damaged, or was saved without checksums"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }
}
