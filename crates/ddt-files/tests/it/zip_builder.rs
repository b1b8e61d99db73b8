//! Zip files made by hand, so that every field can be a lie.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

/// One entry; the fields are what the file states.
#[derive(Clone)]
pub(crate) struct ZipEntry {
    pub(crate) name: String,
    pub(crate) local_name: String,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) crc: u32,
    pub(crate) packed_size: u32,
    pub(crate) size: u32,
    pub(crate) packed: Vec<u8>,
    /// Where the directory says it begins; `None` is where it does.
    pub(crate) offset: Option<u32>,
}

pub(crate) fn stored(name: &str, content: &[u8]) -> ZipEntry {
    ZipEntry {
        name: name.to_owned(),
        local_name: name.to_owned(),
        method: 0,
        flags: 0,
        crc: crc32fast::hash(content),
        packed_size: content.len() as u32,
        size: content.len() as u32,
        packed: content.to_vec(),
        offset: None,
    }
}

pub(crate) fn deflated(name: &str, content: &[u8]) -> ZipEntry {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    let packed = encoder.finish().unwrap();
    ZipEntry { method: 8, packed_size: packed.len() as u32, packed, ..stored(name, content) }
}

/// A whole zip file (without zip64).
pub(crate) fn zip(entries: &[ZipEntry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for it in entries {
        let offset = it.offset.unwrap_or(out.len() as u32);
        let common = |name: &str| {
            let mut bytes = Vec::new();
            for value in [20, it.flags, it.method, 0, 0x21] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            for value in [it.crc, it.packed_size, it.size] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
            bytes
        };
        out.extend_from_slice(b"PK\x03\x04");
        out.extend(common(&it.local_name));
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(it.local_name.as_bytes());
        out.extend_from_slice(&it.packed);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend(common(&it.name));
        directory.extend_from_slice(&[0; 12]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(it.name.as_bytes());
    }
    let (start, bytes, count) = (out.len() as u32, directory.len() as u32, entries.len() as u16);
    out.extend(directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        out.extend_from_slice(&count.to_le_bytes());
    }
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out
}

/// An npy file with this text in its header, not padded.
pub(crate) fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"\x93NUMPY".to_vec();
    out.extend_from_slice(&[version, 0]);
    match version {
        1 => out.extend_from_slice(&(header.len() as u16).to_le_bytes()),
        _ => out.extend_from_slice(&(header.len() as u32).to_le_bytes()),
    }
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// An npy file of C order.
pub(crate) fn array(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(1, &format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}
