//! PyTorch's format before 1.6: a stream of pickles, then the storages.
//!
//! ```text
//! pickle   a magic number
//! pickle   the protocol, 1001
//! pickle   {"little_endian": True, ..}
//! pickle   names, types, shapes, strides, and for each tensor the key of its storage
//! pickle   a list of the keys
//! for each key: u64 number of elements | the elements
//! ```

use std::collections::BTreeMap;

use crate::FileError;
use crate::error::{check_limit, clip};
use crate::limits::{MAX_ENTRIES, MAX_PICKLE_BYTES};
use crate::source::{Source, number};
use crate::torch::machine;
use crate::torch::pickle::{Pickle, Value};
use crate::torch::rebuild::{self, Rebuilt, Storage};

/// The magic number as all protocols pickle it, and the end of the pickle.
const MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const PROTOCOL: i64 = 1001;

/// Bytes read at first; pickles of many tensors are longer.
const FIRST_READ: u64 = 1 << 20;

/// The tensors of a file, and where in it each storage begins.
pub(crate) type Legacy = (BTreeMap<String, Rebuilt>, BTreeMap<String, u64>);

/// Length of the pickle of the magic number, with which a file begins; `None` for other files.
pub(crate) fn magic_bytes(head: &[u8]) -> Option<usize> {
    let rest = match head {
        // Protocols 4 and 5 may say the length of what follows.
        [0x80, 4 | 5, 0x95, rest @ ..] => rest.get(8..)?,
        [0x80, 2..=5, rest @ ..] => rest,
        _ => return None,
    };
    rest.starts_with(MAGIC).then_some(head.len() - rest.len() + MAGIC.len())
}

/// Reads the pickles, and finds the storages.
pub(crate) fn open(source: &Source) -> Result<Legacy, FileError> {
    // Nothing says how long the pickles are: read more as long as they do not end.
    let most = source.len().min(MAX_PICKLE_BYTES);
    let mut len = most.min(FIRST_READ);
    loop {
        let bytes = source.read("the pickles", 0, len)?;
        match pickles(source, &bytes) {
            Err(_) if len < most => len = most.min(len * 4),
            other => break other,
        }
    }
}

fn pickles(source: &Source, bytes: &[u8]) -> Result<Legacy, FileError> {
    let path = source.path();
    let mut at = magic_bytes(bytes).unwrap_or(0);
    let mut next = || {
        let pickle = machine::run(path, bytes.get(at..).unwrap_or_default())?;
        at += pickle.len;
        Ok::<_, FileError>(pickle)
    };
    let (protocol, system, object, keys) = (next()?, next()?, next()?, next()?);
    match protocol.value(protocol.top) {
        Value::Int(PROTOCOL) => {}
        other => {
            let problem = format!("expected protocol {PROTOCOL} of legacy PyTorch files, got {other:?}");
            return Err(FileError::unusable(path, problem));
        }
    }
    if let Some(little) = system.get(system.top, "little_endian")
        && !matches!(system.value(little), Value::Bool(true))
    {
        return Err(FileError::unusable(path, "numbers are stored big-endian, expected little-endian"));
    }
    let tensors = rebuild::tensors(path, &object)?;
    let begins = storages(source, &object, &keys, at as u64)?;
    Ok((tensors, begins))
}

/// Finds where the storages begin, the first of them at `begin`; each says its number of elements again.
fn storages(
    source: &Source,
    object: &Pickle<'_>,
    keys: &Pickle<'_>,
    begin: u64,
) -> Result<BTreeMap<String, u64>, FileError> {
    let broken = |problem: String| FileError::unusable(source.path(), problem);
    let Value::List(list) = keys.value(keys.top) else {
        let kind = keys.value(keys.top).kind();
        return Err(broken(format!("expected a list of storage keys, got {kind}")));
    };
    check_limit(source.path(), "the number of storages", MAX_ENTRIES, list.len() as u64)?;
    let described = describe(source, object)?;
    let mut begins = BTreeMap::new();
    let mut at = begin;
    for key in list {
        let Some((key, storage)) = keys.str(*key).and_then(|key| described.get_key_value(key)) else {
            return Err(broken("a storage key that no tensor has".to_string()));
        };
        let count = number(&source.read("the size of a storage", at, 8)?, 0, 8);
        if count != storage.count {
            let (key, expected) = (clip(key), storage.count);
            return Err(broken(format!("storage `{key}`: expected {expected} elements, got {count}")));
        }
        begins.insert(key.clone(), at + 8);
        at = (at + 8).saturating_add(storage.count * storage.element);
        if at > source.len() {
            let problem = format!("it is cut short: storage `{}` ends at byte {at}", clip(key));
            return Err(broken(format!("{problem}, the file has {}", source.len())));
        }
    }
    Ok(begins)
}

/// All storages that the pickle refers to, those of tensors that are left out too.
fn describe(source: &Source, object: &Pickle<'_>) -> Result<BTreeMap<String, Storage>, FileError> {
    let mut described: BTreeMap<String, Storage> = BTreeMap::new();
    for id in object.ids() {
        if !matches!(object.value(id), Value::Persistent(_)) {
            continue;
        }
        // Modules are referred to as well; nothing here needs them.
        let Ok(storage) = rebuild::storage(object, id) else { continue };
        let found = described.get(&storage.key);
        if found.is_some_and(|it| (it.count, it.element) != (storage.count, storage.element)) {
            let problem = format!("storage `{}` is described in two ways", clip(&storage.key));
            return Err(FileError::unusable(source.path(), problem));
        }
        described.insert(storage.key.clone(), storage);
    }
    Ok(described)
}
