//! The safetensors format, read and written: a length, a JSON header, and the numbers.
//!
//! ```text
//! u64 little-endian n | n bytes of JSON | data
//! {"__metadata__": {..}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..}
//! ```
//!
//! The same tensors give the same bytes. Checked before anything is read from the data: the header's length against
//! a limit and the file, names for duplicates, shapes for overflow, sizes against types, and that the tensors tile the
//! data without gap or overlap.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::error::{check_limit, clip};
use crate::hash::Hashing;
use crate::limits::{MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_TENSORS};
use crate::place::{Contents, Place};
use crate::source::{Source, number};
use crate::tensor_source::checked_bytes;
use crate::{FileError, FileSystem, TensorInfo};

/// Bytes of the length that begins a file.
const LENGTH_BYTES: u64 = 8;

/// The reserved key of the text entries.
const METADATA_KEY: &str = "__metadata__";

/// A value of the header's object.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(
    untagged,
    expecting = "expected dtype, shape and data_offsets, or metadata of strings, each key once"
)]
enum Entry {
    Tensor { dtype: String, shape: Vec<usize>, data_offsets: (u64, u64) },
    Metadata(Unique<String>),
}

/// An object whose keys occur once each; serde's own maps would silently keep the last of equal ones.
#[derive(serde::Serialize)]
pub(crate) struct Unique<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut unique = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if unique.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("duplicate key `{key}`")));
                    }
                }
                Ok(Unique(unique))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// Reads the header of a file.
pub(crate) fn contents(source: &Source) -> Result<Contents, FileError> {
    let length = number(&source.read("the header length", 0, LENGTH_BYTES)?, 0, 8);
    check_limit(source.path(), "the header length", MAX_HEADER_BYTES, length)?;
    let json = source.read("the header", LENGTH_BYTES, length)?;
    let invalid =
        |problem: &str| FileError::unusable(source.path(), format!("invalid safetensors header: {problem}"));
    let Unique::<Entry>(entries) =
        serde_json::from_slice(&json).map_err(|error| invalid(&clip(&error.to_string())))?;
    check_limit(source.path(), "the number of tensors", MAX_TENSORS as u64, entries.len() as u64)?;
    let mut contents = Contents::default();
    let mut tensors = Vec::new();
    for (name, entry) in entries {
        match entry {
            Entry::Metadata(Unique(text)) if name == METADATA_KEY => contents.metadata = text,
            Entry::Tensor { dtype, shape, data_offsets } if name != METADATA_KEY => {
                tensors.push((data_offsets, name, dtype, shape));
            }
            Entry::Metadata(_) => return Err(invalid(&format!("`{}` is no tensor", clip(&name)))),
            Entry::Tensor { .. } => return Err(invalid(&format!("`{METADATA_KEY}` is a tensor, not text"))),
        }
    }
    tensors.sort();
    let data = LENGTH_BYTES + length;
    let mut end = 0;
    for ((from, to), name, dtype, shape) in tensors {
        let wrong = |problem: String| invalid(&format!("`{}` {problem}", clip(&name)));
        if name.len() > MAX_NAME_BYTES {
            return Err(wrong(format!("has {} bytes, the limit is {MAX_NAME_BYTES}", name.len())));
        }
        let Some(stored) = dtype_of(&dtype) else {
            let problem = format!("unsupported element type {}", clip(&dtype));
            return Err(FileError::tensor(source.path(), &name, problem));
        };
        let bytes =
            checked_bytes(stored, &shape).map_err(|problem| wrong(format!("is impossible: {problem}")))?;
        if from != end {
            return Err(wrong(format!("begins at {from}, expected {end}: tensors must be adjacent")));
        }
        if to.checked_sub(from) != Some(bytes) {
            let needed = format!("of type {dtype} and shape {shape:?} needs {bytes} bytes");
            return Err(wrong(format!("{needed}, its offsets are {from} and {to}")));
        }
        end = to;
        // Saturates only in a file that fails the check below.
        let place = Place::row_major(TensorInfo { dtype: stored, shape }, data.saturating_add(from));
        contents.tensors.insert(name, place);
    }
    let expected = data.saturating_add(end);
    if expected > source.len() {
        let got = source.len();
        let problem = format!("it is cut short: the tensors need {expected} bytes, the file has {got}");
        return Err(FileError::unusable(source.path(), problem));
    }
    if expected < source.len() {
        return Err(invalid(&format!("{} bytes follow the last tensor", source.len() - expected)));
    }
    Ok(contents)
}

/// Element types that are written, with their names; booleans and float8 are only read.
const DTYPES: [(&str, DType); 9] = [
    ("U8", DType::U8),
    ("U32", DType::U32),
    ("I16", DType::I16),
    ("I32", DType::I32),
    ("I64", DType::I64),
    ("BF16", DType::BF16),
    ("F16", DType::F16),
    ("F32", DType::F32),
    ("F64", DType::F64),
];

fn dtype_of(name: &str) -> Option<DType> {
    match name {
        "BOOL" => Some(DType::U8),
        "F8_E4M3" => Some(DType::F8E4M3),
        _ => DTYPES.iter().find(|it| it.0 == name).map(|it| it.1),
    }
}

impl FileSystem {
    /// Writes tensors and text entries to a safetensors file and returns its SHA-256 in hexadecimal.
    ///
    /// The bytes depend only on names, types, shapes, values and `metadata`: the header is sorted by name, the
    /// data by element size (largest first, which keeps every tensor aligned) and name. The file is replaced
    /// as a whole, as by [`atomic_write`](Self::atomic_write). Tensors on other devices are copied one by one.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for what the format cannot hold, before anything is written; [`FileError::Io`] if
    /// the disk is full, read-only or failing. The previous file is then intact.
    pub fn write_safetensors(
        &self,
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<String, FileError> {
        let order = in_order(path, tensors)?;
        let header = header_bytes(path, &order, metadata)?;
        self.atomic_write(path, |file| {
            let mut file = Hashing::new(file);
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            for (name, _, tensor) in &order {
                write_elements(&mut file, tensor)
                    .map_err(|error| io::Error::new(error.kind(), format!("tensor `{name}`: {error}")))?;
            }
            Ok(file.hex())
        })
    }
}

/// [`FileSystem::write_safetensors`] to the real disk.
///
/// # Errors
/// As that.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<String, FileError> {
    FileSystem::default().write_safetensors(path, tensors, metadata)
}

/// A tensor in the order of the data: its name and its spelling of the element type.
type Ordered<'a> = (&'a str, &'static str, &'a Tensor);

fn in_order<'a>(path: &Path, tensors: &'a BTreeMap<String, Tensor>) -> Result<Vec<Ordered<'a>>, FileError> {
    check_limit(path, "the number of tensors", MAX_TENSORS as u64, tensors.len() as u64)?;
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if name == METADATA_KEY || name.len() > MAX_NAME_BYTES {
            return Err(FileError::tensor(path, name, "the name is reserved or too long"));
        }
        let Some(&(dtype, _)) = DTYPES.iter().find(|it| it.1 == tensor.dtype()) else {
            let problem = format!("unsupported element type {}", tensor.dtype().as_str());
            return Err(FileError::tensor(path, name, problem));
        };
        order.push((name.as_str(), dtype, tensor));
    }
    // Stable: names stay sorted among elements of one size.
    order.sort_by_key(|(_, _, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    Ok(order)
}

fn header_bytes(
    path: &Path,
    order: &[Ordered<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, FileError> {
    let mut end = 0;
    let mut entries = BTreeMap::new();
    for &(name, dtype, tensor) in order {
        let begin = end;
        end += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        let (dtype, shape) = (dtype.to_owned(), tensor.dims().to_vec());
        entries.insert(name, Entry::Tensor { dtype, shape, data_offsets: (begin, end) });
    }
    let metadata = Some(metadata).filter(|it| !it.is_empty());
    let metadata = metadata.map(|it| (METADATA_KEY, Entry::Metadata(Unique(it.clone()))));
    let header = Header(metadata.into_iter().chain(entries).collect());
    let mut json = serde_json::to_vec(&header).map_err(|error| FileError::io("write", path)(error.into()))?;
    // Spaces after the object keep the data aligned to the largest element.
    json.resize(json.len().next_multiple_of(8), b' ');
    check_limit(path, "the header length", MAX_HEADER_BYTES, json.len() as u64)?;
    Ok(json)
}

/// The header's object in the order of the file.
struct Header<'a>(Vec<(&'a str, Entry)>);

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, entry)| (name, entry)))
    }
}

/// Writes the elements in little-endian order.
pub(crate) fn write_elements(file: impl Write, tensor: &Tensor) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 16, file);
    tensor.write_bytes(&mut file).map_err(|error| match error {
        candle_core::Error::Io(error) => error,
        other => io::Error::other(other),
    })?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn open(json: &str, data: usize) -> Result<Contents, FileError> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        contents(&Source::from_bytes(Cow::Owned(bytes), "test"))
    }

    fn problem(json: &str, data: usize) -> String {
        open(json, data).unwrap_err().to_string()
    }

    #[test]
    fn reads_a_valid_header() {
        let json = r#"{"__metadata__":{"k":"v"},"b":{"dtype":"BOOL","shape":[2],"data_offsets":[4,6]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"I64","shape":[0,3],"data_offsets":[6,6]}}"#;
        let file = open(json, 6).unwrap();
        assert_eq!(file.metadata["k"], "v");
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["a", "b", "z"]);
        assert_eq!(file.tensors["b"].info, TensorInfo { dtype: DType::U8, shape: vec![2] });
    }

    #[test]
    fn refuses_every_lie_of_a_header() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(open(&one("F32", "[2]", "[0,8]"), 8).is_ok());
        assert!(problem(&one("F32", "[2]", "[0,8]"), 7).contains("cut short"));
        assert!(problem(&one("F32", "[2]", "[0,8]"), 9).contains("follow the last tensor"));
        assert!(problem(&one("F32", "[2]", "[0,7]"), 7).contains("needs 8 bytes"));
        assert!(problem(&one("F32", "[2]", "[8,0]"), 8).contains("expected 0"));
        assert!(problem(&one("F32", "[2]", "[1,9]"), 9).contains("expected 0"));
        assert!(problem(&one("F32", "[-2]", "[0,8]"), 8).contains("expected dtype, shape and data_offsets"));
        assert!(problem(&one("C64", "[1]", "[0,8]"), 8).contains("element type C64"));
        let giant = format!("[{m},{m},0]", m = usize::MAX);
        assert!(problem(&one("F32", &giant, "[0,0]"), 0).contains("too many elements"));
        let end = u64::MAX;
        assert!(problem(&one("U8", &format!("[{end}]"), &format!("[0,{end}]")), 0).contains("too many"));
        let half = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        assert!(problem(&format!(r#"{{"a":{half},"a":{half}}}"#), 4).contains("duplicate key `a`"));
        assert!(problem(&format!(r#"{{"a":{half},"b":{half}}}"#), 4).contains("adjacent"));
        let twice = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
        assert!(problem(twice, 0).contains("expected dtype"));
        assert!(
            problem(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("duplicate key `__metadata__`")
        );
        assert!(problem(r#"{"__metadata__":{"k":1}}"#, 0).contains("metadata of strings"));
        assert!(problem(&format!(r#"{{"{}":{half}}}"#, "n".repeat(2000)), 4).contains("2000 bytes"));
        assert!(problem(&format!(r#"{{"__metadata__":{half}}}"#), 4).contains("`__metadata__` is a tensor"));
        assert!(problem(r#"{"a":{"k":"v"}}"#, 0).contains("`a` is no tensor"));
        assert!(problem(&"[".repeat(100_000), 0).contains("invalid safetensors header"));
    }

    #[test]
    fn refuses_lengths_before_allocating() {
        let open = |bytes: Vec<u8>| contents(&Source::from_bytes(Cow::Owned(bytes), "test"));
        let lie = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
        let problem = |bytes| open(bytes).unwrap_err().to_string();
        assert!(problem(lie).contains("the limit is"));
        let lie = [1000u64.to_le_bytes().as_slice(), b"{}"].concat();
        assert!(problem(lie).contains("cut short"));
        assert!(problem(vec![0; 7]).contains("cut short"));
        let bad = [4u64.to_le_bytes().as_slice(), b"{\"\xff\""].concat();
        assert!(problem(bad).contains("invalid safetensors header"));
    }
}
