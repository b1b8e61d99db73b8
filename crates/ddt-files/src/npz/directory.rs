//! The table of contents of a zip file, checked before anything is believed.
//!
//! Read here and not by a general library, because that one takes memory by the counts that a file states.
//! Understood is what numpy writes: one volume that begins the file, zip64 or not, entries stored or deflated.

use crate::npz::error::NpzError;
use crate::npz::limits::{MAX_DIRECTORY_BYTES, MAX_ENTRIES, MAX_INFLATION};
use crate::npz::source::Source;

const END: u64 = 22;
const ZIP64_LOCATOR: u64 = 20;
const ZIP64_END: u64 = 56;
const ENTRY: usize = 46;
const LOCAL: u64 = 30;

/// Longest comment after the end record.
const MAX_COMMENT: u64 = 0xffff;
/// In a field of 32 bits: the number stands in the zip64 field.
const WIDE: u64 = 0xffff_ffff;
/// In a field of 16 bits, likewise.
const WIDE_COUNT: u64 = 0xffff;

/// How an entry is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Stored,
    Deflated,
}

/// One entry; its bytes lie inside the file and overlap no other's.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) method: Method,
    /// Checksum of the content, where the file has one.
    pub(crate) crc: Option<u32>,
    /// Bytes in the file.
    pub(crate) packed: u64,
    /// Bytes of content.
    pub(crate) size: u64,
    /// Where the packed bytes begin.
    pub(crate) start: u64,
}

/// Reads and checks all entries, in the order of the file.
pub(crate) fn read_directory(source: &Source) -> Result<Vec<Entry>, NpzError> {
    let place = Place::find(source)?;
    let bytes = source.read(place.start, place.bytes)?;
    let mut rest = bytes.as_slice();
    let mut raw = Vec::new();
    for _ in 0..place.count {
        let (entry, after) =
            RawEntry::split_off(rest).ok_or_else(|| source.broken("its directory is malformed"))?;
        raw.push(entry);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(source.broken("its directory has more entries than it counts"));
    }
    raw.sort_by_key(|it| it.header);
    let ends = raw.iter().skip(1).map(|it| it.header).chain([place.start]).collect::<Vec<_>>();
    let entries = raw.into_iter().zip(ends).map(|(entry, end)| entry.check(source, end));
    let entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
    let mut names: Vec<&str> = entries.iter().map(|it| it.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(source.broken(format!("two entries are called {:?}", clip(pair[0]))));
    }
    Ok(entries)
}

/// Where the directory lies.
struct Place {
    start: u64,
    bytes: u64,
    count: u64,
}

impl Place {
    fn find(source: &Source) -> Result<Self, NpzError> {
        let tail_bytes = source.len().min(END + MAX_COMMENT);
        let tail = source.read(source.len() - tail_bytes, tail_bytes)?;
        // The comment fills the rest of the file; a mark elsewhere is part of something else.
        let is_end = |&at: &usize| {
            let record = &tail[at..];
            record.starts_with(b"PK\x05\x06") && END + number(record, 20, 2) == record.len() as u64
        };
        let starts = (tail_bytes + 1).saturating_sub(END) as usize;
        let at = (0..starts).rev().find(is_end);
        let at = at.ok_or_else(|| source.broken("it has no end record; it is cut short"))?;
        let record = &tail[at..];
        let end = source.len() - tail_bytes + at as u64;
        let mut place =
            Self { start: number(record, 16, 4), bytes: number(record, 12, 4), count: number(record, 10, 2) };
        let mut limit = end;
        if place.start == WIDE || place.bytes == WIDE || place.count == WIDE_COUNT {
            (place, limit) = Self::find_zip64(source, end)?;
        }
        if place.start.checked_add(place.bytes).is_none_or(|end| end > limit) {
            return Err(source.broken("its directory lies outside the file; it is cut short"));
        }
        for (what, limit, got) in [
            ("the size of the zip directory", MAX_DIRECTORY_BYTES, place.bytes),
            ("the number of zip entries", MAX_ENTRIES, place.count),
        ] {
            if got > limit {
                return Err(NpzError::Limit {
                    path: source.path().to_owned(),
                    what: what.to_owned(),
                    limit,
                    got,
                });
            }
        }
        Ok(place)
    }

    /// The directory's place, and the place of the record that says it.
    fn find_zip64(source: &Source, end: u64) -> Result<(Self, u64), NpzError> {
        let missing = || source.broken("its zip64 end record is missing");
        let locator = source.read(end.checked_sub(ZIP64_LOCATOR).ok_or_else(missing)?, ZIP64_LOCATOR)?;
        if !locator.starts_with(b"PK\x06\x07") {
            return Err(missing());
        }
        let at = number(&locator, 8, 8);
        let record = source.read(at, ZIP64_END)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(missing());
        }
        let place = Self {
            start: number(&record, 48, 8),
            bytes: number(&record, 40, 8),
            count: number(&record, 32, 8),
        };
        Ok((place, at))
    }
}

/// An entry as the directory has it.
struct RawEntry<'a> {
    name: &'a [u8],
    flags: u64,
    method: u64,
    crc: u32,
    packed: u64,
    size: u64,
    header: u64,
}

impl<'a> RawEntry<'a> {
    /// The first entry of a directory and what follows it.
    fn split_off(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (head, rest) = bytes.split_at_checked(ENTRY)?;
        if !head.starts_with(b"PK\x01\x02") {
            return None;
        }
        let (name, rest) = rest.split_at_checked(number(head, 28, 2) as usize)?;
        let (extra, rest) = rest.split_at_checked(number(head, 30, 2) as usize)?;
        let (_comment, rest) = rest.split_at_checked(number(head, 32, 2) as usize)?;
        let mut entry = Self {
            name,
            flags: number(head, 8, 2),
            method: number(head, 10, 2),
            crc: number(head, 16, 4) as u32,
            packed: number(head, 20, 4),
            size: number(head, 24, 4),
            header: number(head, 42, 4),
        };
        // The field has, in this order, those numbers that did not fit.
        let mut wide = zip64_field(extra);
        for value in [&mut entry.size, &mut entry.packed, &mut entry.header] {
            if *value == WIDE {
                let (eight, after) = wide.split_at_checked(8)?;
                *value = number(eight, 0, 8);
                wide = after;
            }
        }
        Some((entry, rest))
    }

    /// Compares it with the entry's own header; all of it must lie before `end`.
    fn check(self, source: &Source, end: u64) -> Result<Entry, NpzError> {
        let name = std::str::from_utf8(self.name).map_err(|_| source.broken("a name in it is not UTF-8"))?;
        let broken = |problem: &str| source.broken(format!("entry {:?}: {problem}", clip(name)));
        if self.flags & 1 != 0 {
            return Err(broken("it is encrypted"));
        }
        let method = match self.method {
            0 if self.packed != self.size => return Err(broken("it is stored, but has two sizes")),
            0 => Method::Stored,
            8 => Method::Deflated,
            other => return Err(broken(&format!("compression method {other}, expected stored or deflated"))),
        };
        let overlaps = || broken("it overlaps what follows it");
        let fixed_end = self.header.checked_add(LOCAL).filter(|it| *it <= end).ok_or_else(overlaps)?;
        let local = source.read(self.header, LOCAL)?;
        if !local.starts_with(b"PK\x03\x04") || number(&local, 8, 2) != self.method {
            return Err(broken("no such entry begins where the directory says"));
        }
        let name_bytes = number(&local, 26, 2);
        let start = fixed_end + name_bytes + number(&local, 28, 2);
        if start.checked_add(self.packed).is_none_or(|it| it > end) {
            return Err(overlaps());
        }
        if source.read(fixed_end, name_bytes)? != self.name {
            return Err(broken("it has another name than in the directory"));
        }
        if self.size / MAX_INFLATION > self.packed {
            return Err(broken("it cannot inflate to the size it states"));
        }
        let Self { crc, packed, size, .. } = self;
        Ok(Entry { name: name.to_owned(), method, crc: Some(crc), packed, size, start })
    }
}

fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((content, after)) = rest.split_at_checked(number(head, 2, 2) as usize) else { break };
        if number(head, 0, 2) == 1 {
            return content;
        }
        extra = after;
    }
    &[]
}

/// A little-endian number of `len` bytes at `at`, which the caller knows to be inside.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// The beginning of a name, for a message.
pub(crate) fn clip(name: &str) -> String {
    name.chars().take(60).collect()
}
