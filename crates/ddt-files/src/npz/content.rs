//! The bytes of one entry, unpacked as they are asked for.

use std::io::{self, BufReader, Read};

use crc32fast::Hasher;
use flate2::bufread::DeflateDecoder;

use crate::npz::directory::{Entry, Method};
use crate::npz::source::{Section, Source};

/// Bytes that are unpacked only to be passed over go through memory of this size.
const SKIPPED_AT_ONCE: usize = 1 << 16;

/// Reads an entry from its beginning.
pub(crate) struct Content<'a> {
    bytes: Packed<'a>,
    entry: &'a Entry,
    hasher: Hasher,
    /// Bytes read or passed over.
    position: u64,
    /// Whether all of them were read.
    whole: bool,
}

enum Packed<'a> {
    Stored(Section<'a>),
    Deflated(Box<DeflateDecoder<BufReader<Section<'a>>>>),
}

impl<'a> Content<'a> {
    pub(crate) fn new(source: &'a Source, entry: &'a Entry) -> Self {
        let section = source.section(entry.start, entry.start + entry.packed);
        let bytes = match entry.method {
            Method::Stored => Packed::Stored(section),
            Method::Deflated => Packed::Deflated(Box::new(DeflateDecoder::new(BufReader::new(section)))),
        };
        Self { bytes, entry, hasher: Hasher::new(), position: 0, whole: true }
    }

    /// Fills `buffer`, or says why it cannot.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        if self.left() < buffer.len() as u64 {
            return Err(format!("it ends after its {} bytes", self.entry.size));
        }
        let read = match &mut self.bytes {
            Packed::Stored(section) => section.read_exact(buffer),
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

    /// Passes over `bytes` bytes, without reading them where it can.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > self.left() {
            return Err(format!("it ends after its {} bytes", self.entry.size));
        }
        if let Packed::Stored(section) = &mut self.bytes {
            section.skip(bytes);
            self.position += bytes;
            self.whole &= bytes == 0;
            return Ok(());
        }
        let mut passed = [0; SKIPPED_AT_ONCE];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(SKIPPED_AT_ONCE as u64);
            self.fill(&mut passed[..now as usize])?;
            left -= now;
        }
        Ok(())
    }

    /// Bytes that have not been read.
    pub(crate) fn left(&self) -> u64 {
        self.entry.size - self.position
    }

    /// Checks what can be checked when the last byte was read; earlier it checks nothing.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        if self.left() > 0 {
            return Ok(());
        }
        if let Packed::Deflated(decoder) = &mut self.bytes {
            let more = decoder.read(&mut [0]).map_err(|error| format!("it cannot be read: {error}"))?;
            if more > 0 {
                return Err(format!("it goes on after the {} bytes it states", self.entry.size));
            }
        }
        match self.entry.crc {
            Some(crc) if self.whole && self.hasher.clone().finalize() != crc => {
                Err("it does not match its checksum; the file is damaged".to_owned())
            }
            _ => Ok(()),
        }
    }
}
