//! Writing safetensors: the same tensors give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::check_limit;
use crate::hash::Hashing;
use crate::limits::{MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_TENSORS};
use crate::safetensors_file::METADATA_KEY;
use crate::{FileError, FileSystem};

impl FileSystem {
    /// Writes tensors and text entries to a safetensors file and returns its SHA-256 in hexadecimal.
    ///
    /// The bytes depend only on names, types, shapes, values and `metadata`: the header is sorted by name, the
    /// data by element size (largest first, which keeps every tensor aligned) and name. The file is replaced
    /// as a whole, as by [`atomic_write`](Self::atomic_write). Tensors on other devices are copied one by one.
    ///
    /// # Errors
    ///
    /// [`FileError::Tensor`] or [`FileError::Limit`] for what the format cannot hold, before anything is
    /// written; [`FileError::Io`] if the disk is full, read-only or failing. The previous file is then intact.
    pub fn write_safetensors(
        &self,
        path: &Path,
        tensors: &BTreeMap<String, Tensor>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<String, FileError> {
        let order = check(path, tensors)?;
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
///
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

fn check<'a>(path: &Path, tensors: &'a BTreeMap<String, Tensor>) -> Result<Vec<Ordered<'a>>, FileError> {
    check_limit(path, "the number of tensors", MAX_TENSORS as u64, tensors.len() as u64)?;
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if name == METADATA_KEY || name.len() > MAX_NAME_BYTES {
            return Err(FileError::tensor(path, name, "the name is reserved or too long"));
        }
        let Some(dtype) = dtype_name(tensor.dtype()) else {
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
        end += tensor.elem_count() * tensor.dtype().size_in_bytes();
        entries.insert(name, Entry { dtype, shape: tensor.dims(), data_offsets: [begin, end] });
    }
    let mut json = serde_json::to_vec(&Header { metadata, entries })
        .map_err(|error| FileError::io("write", path)(error.into()))?;
    // Spaces after the object keep the data aligned to the largest element.
    json.resize(json.len().next_multiple_of(8), b' ');
    check_limit(path, "the header length", MAX_HEADER_BYTES, json.len() as u64)?;
    Ok(json)
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    entries: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(serde::Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, self.metadata)?;
        }
        for (name, entry) in &self.entries {
            map.serialize_entry(name, entry)?;
        }
        map.end()
    }
}

fn dtype_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::U8 => "U8",
        DType::U32 => "U32",
        DType::I16 => "I16",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F32 => "F32",
        DType::F64 => "F64",
        _ => return None,
    })
}

/// Writes the elements in little-endian order.
fn write_elements(file: impl Write, tensor: &Tensor) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 16, file);
    tensor.write_bytes(&mut file).map_err(|error| match error {
        candle_core::Error::Io(error) => error,
        other => io::Error::other(other),
    })?;
    file.flush()
}
