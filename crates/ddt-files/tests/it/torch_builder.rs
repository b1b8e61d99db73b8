//! Builds PyTorch files instruction by instruction, honest ones and others.

use crate::zip_builder::{stored, zip};

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

    pub(crate) fn tensor(self, class: &str, key: &str, count: i64, view: (i64, &[i64], &[i64])) -> Self {
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
