//! PyTorch's formats: pickled names and shapes, and storages of raw numbers.
//!
//! ```text
//! <root>/data.pkl     names, types, shapes, strides, and for each tensor the key of its storage
//! <root>/data/<key>   the numbers of one storage, which several tensors may share
//! <root>/byteorder    "little" or "big"; absent in old files
//! ```
//!
//! That is a zip archive; the older format is a plain stream, read by `legacy`. `machine` runs a `pickle` without
//! ever calling anything; `rebuild` finds the tensors in what it built; `strided` checks and gathers views.

pub(crate) mod legacy;
mod machine;
mod pickle;
mod rebuild;
mod strided;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::error::check_limit;
use crate::limits::MAX_PICKLE_BYTES;
use crate::safetensors_file::tensor_from_bytes;
use crate::source::Source;
use crate::torch::rebuild::Rebuilt;
use crate::torch::strided::View;
use crate::zip::{self, Entry};
use crate::{FileError, TensorInfo};

/// An opened PyTorch file.
#[derive(Debug)]
pub(crate) struct TorchFile {
    pub(crate) tensors: BTreeMap<String, Place>,
}

/// Place of a tensor: a view of a storage.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) info: TensorInfo,
    view: View,
    numbers: Numbers,
}

/// Where the numbers of a storage, or of a part of it, begin.
#[derive(Debug)]
enum Numbers {
    /// In an entry of the archive, at this byte.
    Entry(Entry, u64),
    /// At this byte of the file.
    File(u64),
}

impl TorchFile {
    /// Opens a zip archive.
    pub(crate) fn open_zip(source: &Source) -> Result<Self, FileError> {
        let entries = zip::entries(source)?;
        let roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
        let mut roots = roots.filter(|root| !root.contains('/'));
        let (Some(root), None) = (roots.next(), roots.next()) else {
            let problem = "expected one `<root>/data.pkl`, as torch.save writes it";
            return Err(FileError::unusable(source.path(), problem));
        };
        let read_small = |name: &str, limit: u64| {
            let Some(entry) = entries.get(&format!("{root}/{name}")) else { return Ok(None) };
            check_limit(source.path(), &format!("the size of {name}"), limit, entry.size)?;
            entry.read(source, 0, entry.size).map(Some)
        };
        if read_small("byteorder", 6)?.is_some_and(|it| it != b"little") {
            let problem = "numbers are stored big-endian, expected little-endian";
            return Err(FileError::unusable(source.path(), problem));
        }
        let pickle = read_small("data.pkl", MAX_PICKLE_BYTES)?.unwrap_or_default();
        let tensors = rebuild::tensors(source.path(), &machine::run(source.path(), &pickle)?)?;
        Self::place(source, tensors, |key| {
            let entry = entries.get(&format!("{root}/data/{key}"))?;
            Some((Numbers::Entry(entry.clone(), 0), entry.size))
        })
    }

    /// Opens the stream that PyTorch wrote before 1.6.
    pub(crate) fn open_legacy(source: &Source) -> Result<Self, FileError> {
        let (tensors, begins) = legacy::open(source)?;
        Self::place(source, tensors, |key| {
            let begin = *begins.get(key)?;
            Some((Numbers::File(begin), source.len() - begin))
        })
    }

    /// Checks that every tensor is inside its storage; `find` has where a storage begins, and how many bytes
    /// the file has of it at most.
    fn place(
        source: &Source,
        tensors: BTreeMap<String, Rebuilt>,
        find: impl Fn(&str) -> Option<(Numbers, u64)>,
    ) -> Result<Self, FileError> {
        let place = |rebuilt: Rebuilt| {
            let Rebuilt { dtype, shape, strides, offset, storage } = rebuilt;
            let (numbers, got) = find(&storage.key)
                .ok_or_else(|| format!("its storage `{}` is not in the file", storage.key))?;
            let needed = storage.count * storage.element;
            if got < needed {
                return Err(format!("its storage needs {needed} bytes, the file has {got}"));
            }
            let part = storage.part;
            let elements = (part.end - part.start) / dtype.size_in_bytes() as u64;
            let view = View::new(&shape, strides, offset, elements)?;
            let numbers = match numbers {
                Numbers::Entry(entry, at) => Numbers::Entry(entry, at + part.start),
                Numbers::File(at) => Numbers::File(at + part.start),
            };
            Ok(Place { info: TensorInfo { dtype, shape }, view, numbers })
        };
        let tensors = tensors.into_iter().map(|(name, rebuilt)| {
            let place = place(rebuilt).map_err(|problem| FileError::tensor(source.path(), &name, problem))?;
            Ok((name, place))
        });
        Ok(Self { tensors: tensors.collect::<Result<_, FileError>>()? })
    }

    pub(crate) fn tensor(
        &self,
        source: &Source,
        name: &str,
        device: &Device,
    ) -> Result<Option<Tensor>, FileError> {
        let Some(Place { info, view, numbers }) = self.tensors.get(name) else { return Ok(None) };
        let element = info.dtype.size_in_bytes();
        let (begin, len) = view.span();
        // Both products are at most the storage's size in bytes.
        let (begin, len) = (begin as u64 * element as u64, len as u64 * element as u64);
        let span = match numbers {
            Numbers::Entry(entry, at) => entry.read(source, at + begin, len)?,
            Numbers::File(at) => source.read("a tensor", at + begin, len)?,
        };
        let bytes = if view.is_contiguous() { span } else { view.gather(&span, element) };
        tensor_from_bytes(source, name, info, &bytes, device).map(Some)
    }
}
