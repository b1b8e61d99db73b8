//! PyTorch's format: a zip archive of one pickle and of storages.
//!
//! ```text
//! <root>/data.pkl     names, types, shapes, strides, and for each tensor the key of its storage
//! <root>/data/<key>   the numbers of one storage, which several tensors may share
//! <root>/byteorder    "little" or "big"; absent in old files
//! ```
//!
//! `archive` finds the entries; `machine` runs the pickle, whose bytes come from `cursor`, and builds a
//! `value` for everything without ever calling anything; `rebuild` recognises the values that stand for
//! tensors; `state_dict` finds their names; `strided` checks and gathers views.

mod archive;
mod cursor;
mod machine;
mod rebuild;
mod state_dict;
mod strided;
mod value;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::limits::MAX_PICKLE_BYTES;
use crate::safetensors_file::tensor_from_bytes;
use crate::source::Source;
use crate::torch::archive::{Archive, Entry};
use crate::torch::rebuild::Rebuilt;
use crate::torch::strided::View;
use crate::{CheckpointError, TensorInfo};

/// An opened PyTorch file.
#[derive(Debug)]
pub(crate) struct TorchFile {
    pub(crate) tensors: BTreeMap<String, Place>,
}

/// Where a tensor lies: a view of a storage.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) info: TensorInfo,
    view: View,
    storage: Entry,
}

impl TorchFile {
    pub(crate) fn open(source: &Source) -> Result<Self, CheckpointError> {
        let archive = Archive::open(source)?;
        if let Some(entry) = archive.entry("byteorder")
            && (entry.size != 6 || entry.read(source, 0, 6)? != b"little")
        {
            let problem = "numbers are stored big-endian, expected little-endian".to_string();
            return Err(CheckpointError::Zip { path: source.path().to_path_buf(), problem });
        }
        let pickle = archive.pickle();
        if pickle.size > MAX_PICKLE_BYTES {
            let (path, what, limit) =
                (source.path().to_path_buf(), "the size of the pickle", MAX_PICKLE_BYTES);
            return Err(CheckpointError::Limit { path, what, limit, got: pickle.size });
        }
        let bytes = pickle.read(source, 0, pickle.size)?;
        let pickle = machine::run(source.path(), bytes)?;
        let tensors = state_dict::tensors(source.path(), &pickle)?
            .into_iter()
            .map(|(name, rebuilt)| {
                let place = place(&archive, rebuilt).map_err(|problem| CheckpointError::InvalidTensor {
                    path: source.path().to_path_buf(),
                    name: name.clone(),
                    problem,
                })?;
                Ok((name, place))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tensors })
    }

    pub(crate) fn tensor(
        &self,
        source: &Source,
        name: &str,
        device: &Device,
    ) -> Result<Option<Tensor>, CheckpointError> {
        let Some(Place { info, view, storage }) = self.tensors.get(name) else { return Ok(None) };
        let element = info.dtype.size_in_bytes();
        let (begin, len) = view.span();
        // Both products are at most the storage's size in bytes.
        let span = storage.read(source, begin as u64 * element as u64, len as u64 * element as u64)?;
        let bytes = if view.is_contiguous() { span } else { view.gather(&span, element) };
        tensor_from_bytes(source, name, info, &bytes, device).map(Some)
    }
}

/// Finds a tensor's storage and checks that its view stays inside.
fn place(archive: &Archive, rebuilt: Rebuilt) -> Result<Place, String> {
    let Rebuilt { dtype, shape, strides, offset, key, storage_bytes } = rebuilt;
    let storage = archive
        .entry(&format!("data/{key}"))
        .ok_or_else(|| format!("its storage `{key}` is not in the archive"))?;
    if storage.size < storage_bytes {
        return Err(format!("its storage needs {storage_bytes} bytes, the archive has {}", storage.size));
    }
    let elements = storage_bytes / dtype.size_in_bytes() as u64;
    let view = View::new(&shape, strides, offset, elements)?;
    Ok(Place { info: TensorInfo { dtype, shape }, view, storage: storage.clone() })
}
