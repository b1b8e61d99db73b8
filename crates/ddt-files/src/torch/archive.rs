//! The zip container: which entries there are, and any part of one.
//!
//! Read here and not by a general library because its directory decides how much memory is taken: a library
//! believes the counts that the file states. Only what PyTorch writes is understood (one volume that begins
//! the file, zip64 included); entries that were compressed afterwards are inflated up to a limit.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use crate::FileError;
use crate::error::{check_limit, clip};
use crate::limits::{MAX_DIRECTORY_BYTES, MAX_ENTRIES, MAX_INFLATED_BYTES};
use crate::source::{Source, number as field};

const LOCAL_MARK: &[u8] = b"PK\x03\x04";
const DIRECTORY_MARK: &[u8] = b"PK\x01\x02";
const END_MARK: &[u8] = b"PK\x05\x06";
const ZIP64_LOCATOR_MARK: &[u8] = b"PK\x06\x07";
const ZIP64_END_MARK: &[u8] = b"PK\x06\x06";

const LOCAL_BYTES: u64 = 30;
const DIRECTORY_BYTES: usize = 46;
const END_BYTES: usize = 22;
const ZIP64_LOCATOR_BYTES: u64 = 20;
const ZIP64_END_BYTES: u64 = 56;
/// The end record is followed by a comment of at most this size.
const MAX_COMMENT_BYTES: u64 = 0xffff;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const ENCRYPTED_FLAG: u16 = 1;
const ZIP64_FIELD: u64 = 1;
/// A 32-bit field that says: look in the zip64 field.
const IN_ZIP64: u64 = 0xffff_ffff;

const PICKLE: &str = "data.pkl";

/// The entries under the folder of the pickle, named without it.
#[derive(Debug)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
    pickle: Entry,
}

/// One entry of the directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Size of the content in bytes, when inflated.
    pub(crate) size: u64,
    packed: u64,
    method: u16,
    flags: u16,
    crc: u32,
    header: u64,
}

impl Archive {
    pub(crate) fn open(source: &Source) -> Result<Self, FileError> {
        let directory = Directory::find(source)?;
        let mut all = directory.entries(source)?;
        let mut roots = all.keys().filter_map(|name| {
            let root = name.strip_suffix(PICKLE)?.strip_suffix('/')?;
            (!root.contains('/')).then(|| root.to_string())
        });
        let (Some(root), None) = (roots.next(), roots.next()) else {
            return Err(fault(source, "expected one `<root>/data.pkl`, as torch.save writes it"));
        };
        let prefix = format!("{root}/");
        let Some(pickle) = all.remove(&format!("{prefix}{PICKLE}")) else {
            return Err(fault(source, "the pickle has vanished"));
        };
        let entries = all
            .into_iter()
            .filter_map(|(name, entry)| Some((name.strip_prefix(&prefix)?.to_string(), entry)))
            .collect();
        Ok(Self { entries, pickle })
    }

    pub(crate) fn pickle(&self) -> &Entry {
        &self.pickle
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
}

impl Entry {
    /// Reads a part of the content; the checksum is compared when the part is the whole.
    pub(crate) fn read(&self, source: &Source, from: u64, len: u64) -> Result<Vec<u8>, FileError> {
        if from.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(fault(source, format!("{len} bytes at {from} of an entry of {}", self.size)));
        }
        if self.flags & ENCRYPTED_FLAG != 0 {
            return Err(fault(source, "an entry is encrypted"));
        }
        let local = source.read("a zip entry", self.header, LOCAL_BYTES)?;
        if !local.starts_with(LOCAL_MARK) {
            return Err(fault(source, format!("no entry begins at byte {}", self.header)));
        }
        let start = self.header + LOCAL_BYTES + field(&local, 26, 2) + field(&local, 28, 2);
        match self.method {
            STORED if self.packed == self.size => {
                let part = source.read("a zip entry", start.saturating_add(from), len)?;
                if len == self.size {
                    self.check(source, &part)?;
                }
                Ok(part)
            }
            DEFLATED => {
                let whole = self.inflate(source, start)?;
                // The range was checked against the size, which is the length.
                Ok(whole[from as usize..(from + len) as usize].to_vec())
            }
            method => {
                Err(fault(source, format!("unsupported compression method {method} or sizes that differ")))
            }
        }
    }

    fn inflate(&self, source: &Source, start: u64) -> Result<Vec<u8>, FileError> {
        check_limit(source.path(), "the size of a compressed entry", MAX_INFLATED_BYTES, self.size)?;
        let packed = source.read("a zip entry", start, self.packed)?;
        let mut whole = Vec::new();
        // One byte more than declared, to notice an entry that does not stop.
        let read = DeflateDecoder::new(packed.as_slice()).take(self.size + 1).read_to_end(&mut whole);
        if let Err(error) = read {
            return Err(fault(source, format!("an entry does not inflate: {error}")));
        }
        if whole.len() as u64 != self.size {
            return Err(fault(source, format!("an entry does not inflate to its {} bytes", self.size)));
        }
        self.check(source, &whole)?;
        Ok(whole)
    }

    fn check(&self, source: &Source, content: &[u8]) -> Result<(), FileError> {
        let mut crc = Crc::new();
        crc.update(content);
        if crc.sum() == self.crc {
            return Ok(());
        }
        Err(fault(
            source,
            "an entry does not match its checksum; the file is damaged, or was saved without checksums",
        ))
    }
}

/// Where the directory lies.
struct Directory {
    start: u64,
    bytes: u64,
    count: u64,
}

impl Directory {
    fn find(source: &Source) -> Result<Self, FileError> {
        let tail = source.len().min(END_BYTES as u64 + MAX_COMMENT_BYTES);
        let tail_start = source.len() - tail;
        let bytes = source.read("the end of the archive", tail_start, tail)?;
        let at = bytes
            .windows(END_BYTES)
            .rposition(|end| end.starts_with(END_MARK))
            // The comment must fill the rest, or the mark is part of something else.
            .filter(|&at| at + END_BYTES + field(&bytes[at..], 20, 2) as usize == bytes.len())
            .ok_or_else(|| fault(source, "no end record; the file is cut short"))?;
        let end = &bytes[at..];
        let end_start = tail_start + at as u64;
        let mut directory =
            Self { start: field(end, 16, 4), bytes: field(end, 12, 4), count: field(end, 10, 2) };
        if directory.count == 0xffff || directory.bytes == IN_ZIP64 || directory.start == IN_ZIP64 {
            directory = Self::find_zip64(source, end_start)?;
        }
        if directory.start.checked_add(directory.bytes).is_none_or(|end| end > end_start) {
            return Err(fault(source, "the directory lies outside the file"));
        }
        let check = |what, limit, got| check_limit(source.path(), what, limit, got);
        check("the size of the zip directory", MAX_DIRECTORY_BYTES, directory.bytes)?;
        check("the number of zip entries", MAX_ENTRIES, directory.count)?;
        Ok(directory)
    }

    fn find_zip64(source: &Source, end_start: u64) -> Result<Self, FileError> {
        let missing = || fault(source, "the zip64 end record is missing");
        let locator = end_start.checked_sub(ZIP64_LOCATOR_BYTES).ok_or_else(missing)?;
        let locator = source.read("the zip64 locator", locator, ZIP64_LOCATOR_BYTES)?;
        if !locator.starts_with(ZIP64_LOCATOR_MARK) {
            return Err(missing());
        }
        let end = source.read("the zip64 end record", field(&locator, 8, 8), ZIP64_END_BYTES)?;
        if !end.starts_with(ZIP64_END_MARK) {
            return Err(missing());
        }
        Ok(Self { start: field(&end, 48, 8), bytes: field(&end, 40, 8), count: field(&end, 32, 8) })
    }

    fn entries(&self, source: &Source) -> Result<BTreeMap<String, Entry>, FileError> {
        let bytes = source.read("the zip directory", self.start, self.bytes)?;
        let mut rest = bytes.as_slice();
        let mut entries = BTreeMap::new();
        for _ in 0..self.count {
            let (name, entry, after) =
                parse_entry(rest).ok_or_else(|| fault(source, "the directory is malformed"))?;
            rest = after;
            let name = std::str::from_utf8(name)
                .map_err(|_| fault(source, "a name in the directory is not UTF-8"))?
                .to_string();
            if entries.contains_key(&name) {
                return Err(fault(source, format!("two entries are called `{}`", clip(&name))));
            }
            entries.insert(name, entry);
        }
        if !rest.is_empty() {
            return Err(fault(source, "the directory has more entries than its count"));
        }
        Ok(entries)
    }
}

/// Splits the first entry off the directory's bytes.
fn parse_entry(bytes: &[u8]) -> Option<(&[u8], Entry, &[u8])> {
    let (head, rest) = bytes.split_at_checked(DIRECTORY_BYTES)?;
    if !head.starts_with(DIRECTORY_MARK) {
        return None;
    }
    let (name, rest) = rest.split_at_checked(field(head, 28, 2) as usize)?;
    let (extra, rest) = rest.split_at_checked(field(head, 30, 2) as usize)?;
    let (_comment, rest) = rest.split_at_checked(field(head, 32, 2) as usize)?;
    let mut entry = Entry {
        size: field(head, 24, 4),
        packed: field(head, 20, 4),
        method: field(head, 10, 2) as u16,
        flags: field(head, 8, 2) as u16,
        crc: field(head, 16, 4) as u32,
        header: field(head, 42, 4),
    };
    // The zip64 field holds, in this order, those of the three that did not fit.
    let mut wide = zip64_field(extra);
    for value in [&mut entry.size, &mut entry.packed, &mut entry.header] {
        if *value == IN_ZIP64 {
            let (eight, after) = wide.split_at_checked(8)?;
            *value = field(eight, 0, 8);
            wide = after;
        }
    }
    // Beyond this no position in a file can be computed.
    if entry.header > i64::MAX as u64 {
        return None;
    }
    Some((name, entry, rest))
}

fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((content, after)) = rest.split_at_checked(field(head, 2, 2) as usize) else { break };
        if field(head, 0, 2) == ZIP64_FIELD {
            return content;
        }
        extra = after;
    }
    &[]
}

fn fault(source: &Source, problem: impl Into<String>) -> FileError {
    FileError::format(source.path(), format!("invalid zip archive: {}", problem.into()))
}
