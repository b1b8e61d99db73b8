//! Writing safetensors: the same tensors give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use sha2::{Digest, Sha256};

use crate::atomic::hex;
use crate::limits::{MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_TENSORS};
use crate::safetensors_file::METADATA_KEY;
use crate::{CheckpointError, atomic_write};

/// Writes tensors and text entries to a safetensors file and returns its SHA-256 in hexadecimal.
///
/// The bytes depend on names, types, shapes, values and `metadata` alone: the header is sorted by name, the
/// data by element size (largest first, which keeps every tensor aligned) and name. The file is replaced as a
/// whole, as by [`atomic_write`]. Tensors on other devices are copied one at a time.
///
/// # Errors
///
/// [`CheckpointError::UnsupportedDtype`], [`CheckpointError::InvalidTensor`] or [`CheckpointError::Limit`]
/// for what the format cannot hold, before anything is written; [`CheckpointError::Write`] if the disk is
/// full, read-only or failing. The previous file is then intact.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<String, CheckpointError> {
    let order = check(path, tensors)?;
    let header = header_bytes(path, &order, metadata)?;
    atomic_write(path, |file| {
        let mut file = Hashing { file, hasher: Sha256::new() };
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (name, _, tensor) in &order {
            write_elements(&mut file, tensor)
                .map_err(|error| io::Error::new(error.kind(), format!("tensor `{name}`: {error}")))?;
        }
        Ok(hex(file.hasher))
    })
}

/// A tensor in the order of the data: its name and its spelling of the element type.
type Ordered<'a> = (&'a str, &'static str, &'a Tensor);

fn check<'a>(
    path: &Path,
    tensors: &'a BTreeMap<String, Tensor>,
) -> Result<Vec<Ordered<'a>>, CheckpointError> {
    let path = || path.to_path_buf();
    if tensors.len() > MAX_TENSORS {
        let (limit, got) = (MAX_TENSORS as u64, tensors.len() as u64);
        return Err(CheckpointError::Limit { path: path(), what: "the number of tensors", limit, got });
    }
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if name == METADATA_KEY || name.len() > MAX_NAME_BYTES {
            let problem = "the name is reserved or too long".to_string();
            return Err(CheckpointError::InvalidTensor { path: path(), name: name.clone(), problem });
        }
        let Some(dtype) = dtype_name(tensor.dtype()) else {
            let dtype = tensor.dtype().as_str().to_string();
            return Err(CheckpointError::UnsupportedDtype { path: path(), name: name.clone(), dtype });
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
) -> Result<Vec<u8>, CheckpointError> {
    let mut end = 0;
    let mut entries = BTreeMap::new();
    for &(name, dtype, tensor) in order {
        let begin = end;
        end += tensor.elem_count() * tensor.dtype().size_in_bytes();
        entries.insert(name, Entry { dtype, shape: tensor.dims(), data_offsets: [begin, end] });
    }
    let mut json = serde_json::to_vec(&Header { metadata, entries })
        .map_err(|error| CheckpointError::Write { path: path.to_path_buf(), source: error.into() })?;
    // Spaces after the object keep the data aligned to the largest element.
    json.resize(json.len().next_multiple_of(8), b' ');
    let got = json.len() as u64;
    if got > MAX_HEADER_BYTES {
        let (what, limit) = ("the header length", MAX_HEADER_BYTES);
        return Err(CheckpointError::Limit { path: path.to_path_buf(), what, limit, got });
    }
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

fn write_elements(file: &mut impl Write, tensor: &Tensor) -> io::Result<()> {
    /// Writes elements in blocks, so that no second copy of the tensor is made.
    macro_rules! write_as {
        ($type:ty) => {{
            let flat = tensor.flatten_all().and_then(|it| it.to_vec1::<$type>());
            for block in flat.map_err(io::Error::other)?.chunks(1 << 14) {
                let bytes: Vec<u8> = block.iter().flat_map(|x| x.to_le_bytes()).collect();
                file.write_all(&bytes)?;
            }
            Ok(())
        }};
    }
    match tensor.dtype() {
        DType::U8 => write_as!(u8),
        DType::U32 => write_as!(u32),
        DType::I16 => write_as!(i16),
        DType::I32 => write_as!(i32),
        DType::I64 => write_as!(i64),
        DType::BF16 => write_as!(half::bf16),
        DType::F16 => write_as!(half::f16),
        DType::F32 => write_as!(f32),
        DType::F64 => write_as!(f64),
        other => Err(io::Error::other(format!("unsupported element type {}", other.as_str()))),
    }
}

/// Hashes what passes through it.
struct Hashing<'a> {
    file: &'a mut dyn Write,
    hasher: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
