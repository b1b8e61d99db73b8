//! The bytes of a zip64 archive of stored entries: nothing in them depends on a clock or a machine.

use crc32fast::Hasher;

use crate::npz::header::NpyHeader;

/// 1 January 1980, the earliest date there is.
const DATE: u16 = 0x0021;
/// The version that introduced zip64.
const VERSION: u16 = 45;
/// A number that stands in the zip64 field.
const WIDE: u32 = u32::MAX;

/// One array as an entry of the archive.
#[derive(Debug, Clone)]
pub(crate) struct ArrayEntry {
    /// With `.npy`.
    pub(crate) name: String,
    /// What comes before the numbers.
    pub(crate) header: Vec<u8>,
    /// Size of the numbers in bytes.
    pub(crate) data_bytes: u64,
    /// Checksum of the numbers.
    pub(crate) data_crc: u32,
    /// Where the entry begins in the archive.
    pub(crate) offset: u64,
}

impl ArrayEntry {
    /// An array that begins at `offset`, without its checksum; `None` if it is too large.
    pub(crate) fn new(name: &str, header: &NpyHeader, offset: u64) -> Option<Self> {
        let (name, data_bytes) = (format!("{name}.npy"), header.data_bytes()?);
        let entry = Self { name, header: header.encode(), data_bytes, data_crc: 0, offset };
        // Positions in files are below this.
        (entry.data_start().checked_add(data_bytes)? < i64::MAX as u64 / 2).then_some(entry)
    }

    /// Where its numbers begin in the archive.
    pub(crate) fn data_start(&self) -> u64 {
        self.offset + 30 + self.name.len() as u64 + 20 + self.header.len() as u64
    }

    /// Where the next entry begins.
    pub(crate) fn end(&self) -> u64 {
        self.data_start() + self.data_bytes
    }

    /// What stands before the numbers: the entry's header and the array's.
    pub(crate) fn front(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"PK\x03\x04");
        self.put_common(&mut out);
        put16(&mut out, 20);
        out.extend_from_slice(self.name.as_bytes());
        put16(&mut out, 1);
        put16(&mut out, 16);
        put64(&mut out, self.size());
        put64(&mut out, self.size());
        out.extend_from_slice(&self.header);
        out
    }

    /// From the version to the length of the name, which an entry has in both its places.
    fn put_common(&self, out: &mut Vec<u8>) {
        put16(out, VERSION);
        // No flags, stored, at midnight.
        for zero in [0, 0, 0] {
            put16(out, zero);
        }
        put16(out, DATE);
        put32(out, self.crc());
        put32(out, WIDE);
        put32(out, WIDE);
        put16(out, self.name.len() as u16);
    }

    fn size(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    /// Checksum of the array's header and numbers.
    pub(crate) fn crc(&self) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&self.header);
        hasher.combine(&Hasher::new_with_initial_len(self.data_crc, self.data_bytes));
        hasher.finalize()
    }
}

/// What comes after the last entry; `start` is where that ends.
pub(crate) fn directory(entries: &[ArrayEntry], start: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(b"PK\x01\x02");
        put16(&mut out, VERSION);
        entry.put_common(&mut out);
        put16(&mut out, 28);
        // Comment, disk, and attributes inside and outside.
        for zero in [0, 0, 0, 0, 0] {
            put16(&mut out, zero);
        }
        put32(&mut out, WIDE);
        out.extend_from_slice(entry.name.as_bytes());
        put16(&mut out, 1);
        put16(&mut out, 24);
        for value in [entry.size(), entry.size(), entry.offset] {
            put64(&mut out, value);
        }
    }
    let (bytes, count) = (out.len() as u64, entries.len() as u64);
    out.extend_from_slice(b"PK\x06\x06");
    put64(&mut out, 44);
    put16(&mut out, VERSION);
    put16(&mut out, VERSION);
    put32(&mut out, 0);
    put32(&mut out, 0);
    for value in [count, count, bytes, start] {
        put64(&mut out, value);
    }
    out.extend_from_slice(b"PK\x06\x07");
    put32(&mut out, 0);
    put64(&mut out, start + bytes);
    put32(&mut out, 1);
    out.extend_from_slice(b"PK\x05\x06");
    put32(&mut out, 0);
    put16(&mut out, u16::MAX);
    put16(&mut out, u16::MAX);
    put32(&mut out, WIDE);
    put32(&mut out, WIDE);
    put16(&mut out, 0);
    out
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
