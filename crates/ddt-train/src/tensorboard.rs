//! TensorBoard events file: scalars as framed, checksummed protocol buffers.
//!
//! ```text
//! u64 length | u32 crc(length) | event | u32 crc(event)            crc: CRC-32C, masked
//! event = { 1: wall time, f64;  2: step, int64;  3: version, string | 5: summary }
//! summary = { 1: value }*,  value = { 1: tag, string;  2: simple value, f32 }
//! ```

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ddt_files::{DiskFile, FileSystem};

use crate::error::TrainError;

/// An events file that grows.
#[derive(Debug)]
pub struct EventsFile {
    file: DiskFile,
    end: u64,
}

impl EventsFile {
    /// Name of the file: TensorBoard looks for `tfevents` in it.
    pub const NAME: &'static str = "events.out.tfevents.0.ddt";

    /// Starts a new file in a run's folder; the records of earlier processes come from the log.
    ///
    /// # Errors
    /// [`TrainError::File`] when the file cannot be written.
    pub fn create(system: &FileSystem, folder: &Path) -> Result<Self, TrainError> {
        let mut file = system.open(&folder.join(Self::NAME))?;
        file.resize(0)?;
        let mut events = Self { file, end: 0 };
        let version = [now_field(), bytes_field(3, b"brain.Event:2")].concat();
        events.write(&version)?;
        Ok(events)
    }

    /// Adds the numbers of a line of the log, tagged with their keys.
    ///
    /// # Errors
    /// [`TrainError::File`] when the file cannot be written.
    pub fn add(&mut self, record: &serde_json::Value) -> Result<(), TrainError> {
        let Some(record) = record.as_object() else { return Ok(()) };
        let step = record.get("step").and_then(serde_json::Value::as_u64).unwrap_or_default();
        let mut summary = Vec::new();
        for (tag, value) in record.iter().filter(|it| it.0 != "step") {
            if let Some(value) = value.as_f64() {
                let simple = [vec![2 << 3 | 5], (value as f32).to_le_bytes().to_vec()].concat();
                summary.extend(bytes_field(1, &[bytes_field(1, tag.as_bytes()), simple].concat()));
            }
        }
        let step = [vec![2 << 3], varint(step)].concat();
        self.write(&[now_field(), step, bytes_field(5, &summary)].concat())
    }

    fn write(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let length = (event.len() as u64).to_le_bytes();
        let (head, tail) = (masked_crc(&length).to_le_bytes(), masked_crc(event).to_le_bytes());
        let framed = [&length[..], &head[..], event, &tail[..]].concat();
        self.file.write_at(self.end, &framed)?;
        self.end += framed.len() as u64;
        Ok(())
    }
}

fn now_field() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    [vec![1 << 3 | 1], now.to_le_bytes().to_vec()].concat()
}

/// A field of bytes, text or another message.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Seven bits per byte, lowest first; the top bit marks that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// CRC-32C, rotated and offset by a constant as the format asks, so that a checksum of checksums differs.
fn masked_crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    };
    let crc = !bytes.iter().fold(!0, step);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_numbers_follow_the_format() {
        // The check value of CRC-32C.
        assert_eq!(masked_crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15), 0xe306_9283);
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(300), [0xac, 0x02]);
    }

    #[test]
    fn a_record_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventsFile::create(&FileSystem::default(), folder.path()).unwrap();
        events.add(&serde_json::json!({ "step": 300, "loss": 1.5, "note": "text" })).unwrap();
        let bytes = std::fs::read(folder.path().join(EventsFile::NAME)).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(rest[8..12].try_into().unwrap()), masked_crc(&rest[..8]));
            let event = &rest[12..12 + length];
            assert_eq!(
                u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap()),
                masked_crc(event)
            );
            events.push(event.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 2);
        assert!(events[0].ends_with(b"brain.Event:2"));
        // Step 300, then a summary of one value: tag "loss", 1.5.
        let expected = [&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4][..], b"loss", &[0x15]].concat();
        let at = events[1].windows(expected.len()).position(|it| it == expected).unwrap();
        assert_eq!(events[1][at + expected.len()..], 1.5f32.to_le_bytes());
    }
}
