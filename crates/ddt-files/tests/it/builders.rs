//! Builds zip, npy and PyTorch files by hand, so that every field can be a lie; and what tests ask of readers.

use std::io::Write;

use candle_core::{Device, Tensor};
use ddt_files::{Checkpoint, FileError};
use flate2::Compression;
use flate2::write::DeflateEncoder;

pub(crate) fn open(bytes: Vec<u8>) -> Result<Checkpoint, FileError> {
    Checkpoint::from_bytes(bytes, "test.ckpt")
}

pub(crate) fn tensor(checkpoint: &Checkpoint, name: &str) -> Tensor {
    checkpoint.tensor(name, &Device::Cpu).unwrap()
}

pub(crate) fn f32s(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    tensor(checkpoint, name).flatten_all().unwrap().to_vec1().unwrap()
}

/// Expects an error whose message has this part.
#[track_caller]
pub(crate) fn refused<T>(outcome: Result<T, FileError>, part: &str) {
    let message = outcome.err().map(|it| it.to_string()).unwrap_or_default();
    assert!(message.contains(part), "expected {part:?} in {message:?}");
}

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

/// The end of a zip64 file whose record of counts, size and place of the directory is at `record`.
pub(crate) fn zip64_end(record: u64, fields: [u64; 4]) -> Vec<u8> {
    let mut end = b"PK\x06\x06".to_vec();
    end.extend(44u64.to_le_bytes());
    end.extend([0; 12]);
    end.extend(fields.iter().flat_map(|it| it.to_le_bytes()));
    end.extend(b"PK\x06\x07\x00\x00\x00\x00");
    end.extend(record.to_le_bytes());
    end.extend([1, 0, 0, 0]);
    end.extend(b"PK\x05\x06\x00\x00\x00\x00");
    end.extend([0xff; 12]);
    end.extend([0; 2]);
    end
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

/// Offset, shape and strides of a tensor in its storage.
pub(crate) type View<'a> = (i64, &'a [i64], &'a [i64]);

/// A pickle under construction.
#[derive(Clone, Default)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, op: &[u8]) -> Self {
        self.0.extend(op);
        self
    }

    pub(crate) fn str(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub(crate) fn int(self, value: i64) -> Self {
        self.op(b"\x8a\x08").op(&value.to_le_bytes())
    }

    pub(crate) fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |it, &value| it.int(value)).op(b"t")
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    /// An empty `OrderedDict`, as PyTorch writes for hooks.
    pub(crate) fn no_hooks(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R")
    }

    pub(crate) fn storage(self, class: &str, key: &str, count: i64) -> Self {
        self.op(b"(").str("storage").global("torch", class).str(key).str("cuda:0").int(count).op(b"tQ")
    }

    pub(crate) fn tensor(self, class: &str, key: &str, count: i64, view: View<'_>) -> Self {
        let (offset, shape, strides) = view;
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage(class, key, count)
            .int(offset)
            .ints(shape)
            .ints(strides)
            .op(b"\x89")
            .no_hooks()
            .op(b"tR")
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// A pickle of `{"epoch": 1, "state_dict": {<entries>}}`; `entries` pushes keys and values.
pub(crate) fn lightning(entries: impl Fn(Pickle) -> Pickle) -> Vec<u8> {
    let head = Pickle::new().op(b"}(").str("epoch").int(1).str("state_dict").op(b"}(");
    entries(head).op(b"uu").end()
}

/// A file of a pickle and storages, keyed "0", "1", ...
pub(crate) fn torch_file(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let mut entries = vec![stored("archive/data.pkl", pickle)];
    for (key, storage) in storages.iter().enumerate() {
        entries.push(stored(&format!("archive/data/{key}"), storage));
    }
    zip(&entries)
}

pub(crate) fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A file of PyTorch's older format: a pickle and storages, each with its key, number of elements and bytes.
pub(crate) fn legacy_file(pickle: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(Pickle::new().op(b"}").str("little_endian").op(b"q\x00\x88s").end());
    file.extend(pickle);
    let keys = storages.iter().fold(Pickle::new().op(b"]("), |it, storage| it.str(storage.0));
    file.extend(keys.op(b"e").end());
    for (_, count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend(*bytes);
    }
    file
}
