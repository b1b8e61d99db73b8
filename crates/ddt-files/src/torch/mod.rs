//! PyTorch's formats: pickled names and shapes, and storages of raw numbers.
//!
//! ```text
//! <root>/data.pkl     names, types, shapes, strides, and for each tensor the key of its storage
//! <root>/data/<key>   the numbers of one storage, which several tensors may share
//! <root>/byteorder    "little" or "big"; absent in old files
//! ```
//!
//! That is a zip archive; the older format is a plain stream, read by `legacy`. `machine` runs a `pickle` without
//! ever calling anything; `rebuild` finds the tensors in what it built.

pub(crate) mod legacy;
mod machine;
mod pickle;
mod rebuild;

use std::collections::BTreeMap;

use crate::FileError;
use crate::error::check_limit;
use crate::limits::MAX_PICKLE_BYTES;
use crate::place::{Contents, Place, Storage};
use crate::source::Source;
use crate::torch::rebuild::Rebuilt;
use crate::zip;

/// Reads the table of contents of a zip archive.
pub(crate) fn zip_contents(source: &Source) -> Result<Contents, FileError> {
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
    place(source, tensors, |key, from| {
        let entry = entries.get(&format!("{root}/data/{key}"))?;
        Some((Storage::Entry(entry.clone(), from), entry.size))
    })
}

/// Reads the table of contents of the stream that PyTorch wrote before 1.6.
pub(crate) fn legacy_contents(source: &Source) -> Result<Contents, FileError> {
    let (tensors, begins) = legacy::open(source)?;
    place(source, tensors, |key, from| {
        let begin = *begins.get(key)?;
        Some((Storage::File(begin + from), source.len() - begin))
    })
}

/// Checks that every tensor is inside its storage; `find` returns the part of a storage from a byte on, and how many
/// bytes the file has of the storage at most.
fn place(
    source: &Source,
    tensors: BTreeMap<String, Rebuilt>,
    find: impl Fn(&str, u64) -> Option<(Storage, u64)>,
) -> Result<Contents, FileError> {
    let place = |Rebuilt { info, strides, offset, storage }: Rebuilt| {
        let (part, got) = find(&storage.key, storage.part.start)
            .ok_or_else(|| format!("its storage `{}` is not in the file", storage.key))?;
        let needed = storage.count * storage.element;
        if got < needed {
            return Err(format!("its storage needs {needed} bytes, the file has {got}"));
        }
        let elements = (storage.part.end - storage.part.start) / info.dtype.size_in_bytes() as u64;
        Place::new(info, strides, offset, elements, part)
    };
    let placed = tensors.into_iter().map(|(name, rebuilt)| match place(rebuilt) {
        Ok(place) => Ok((name, place)),
        Err(problem) => Err(FileError::tensor(source.path(), &name, problem)),
    });
    Ok(Contents { tensors: placed.collect::<Result<_, _>>()?, metadata: BTreeMap::new() })
}
