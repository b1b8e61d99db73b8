//! Zip archives whose entries are right but for the fields that an input lies about.
//!
//! ```text
//! 0 | a whole file
//! 1 | entries: how | part name | part content [| u32 size] [| field | u32 value]
//!     how: 1 deflated, as one block that is not compressed; 4 deflated already, to `size`; 2 a lie follows
//! 2 | zip64 fields: 4 u64 | entries
//! ```

use crate::builders::{ZipEntry, stored, zip, zip64_end};
use crate::parts::{Parts, part};

/// Most entries: each costs the fuzzer time.
const MAX_ENTRIES: usize = 16;

/// The file that an input describes.
pub fn file(input: &[u8]) -> Vec<u8> {
    let mut parts = Parts(input);
    match parts.byte() {
        0 => parts.0.to_vec(),
        2 => {
            let fields = std::array::from_fn(|_| parts.number(8));
            let mut file = zip(&entries(parts));
            file.truncate(file.len() - 22);
            let end = zip64_end(file.len() as u64, fields);
            file.extend(end);
            file
        }
        _ => zip(&entries(parts)),
    }
}

fn entries(mut parts: Parts<'_>) -> Vec<ZipEntry> {
    let mut entries = Vec::new();
    while !parts.is_empty() && entries.len() < MAX_ENTRIES {
        let how = parts.byte();
        let (name, content) = (String::from_utf8_lossy(parts.part()).into_owned(), parts.part());
        let mut entry = stored(&name, content);
        if how & 1 != 0 {
            // The library's encoder would take longer than all that is read.
            let length = content.len() as u16;
            let packed = [&[1], &length.to_le_bytes()[..], &(!length).to_le_bytes(), content].concat();
            entry = ZipEntry { method: 8, packed_size: packed.len() as u32, packed, ..entry };
        } else if how & 4 != 0 {
            entry = ZipEntry { method: 8, size: parts.number(4) as u32, ..entry };
        }
        if how & 2 != 0 {
            lie(&mut entry, parts.byte(), parts.number(4) as u32);
        }
        entries.push(entry);
    }
    entries
}

fn lie(entry: &mut ZipEntry, field: u8, value: u32) {
    match field % 8 {
        0 => entry.method = value as u16,
        1 => entry.flags = value as u16,
        2 => entry.crc = value,
        3 => entry.packed_size = value,
        4 => entry.size = value,
        5 => entry.offset = Some(value),
        6 => entry.local_name.push(value as u8 as char),
        _ => entry.packed.truncate(value as usize),
    }
}

/// An input of entries without lies.
pub fn input(entries: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let entry = |(name, content, is_deflated): &(&str, &[u8], bool)| {
        [vec![u8::from(*is_deflated)], part(name.as_bytes()), part(content)].concat()
    };
    [vec![1], entries.iter().flat_map(entry).collect()].concat()
}
