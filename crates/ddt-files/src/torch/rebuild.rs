//! From a pickle to named tensors: the names, and the short list of Python objects that are understood.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::DType;

use crate::error::{check_limit, clip};
use crate::limits::{MAX_NAME_BYTES, MAX_OBJECTS, MAX_RANK, MAX_TENSORS};
use crate::tensor_source::checked_elements;
use crate::torch::pickle::{Id, Pickle, Value};
use crate::{FileError, TensorInfo};

/// The key under which Lightning puts the tensors.
const STATE_DICT: &str = "state_dict";

/// Dictionaries inside each other.
const MAX_DEPTH: usize = 16;

/// Finds the tensors and reads how they are stored.
///
/// Their names are the keys of nested dictionaries joined by dots; if the top level has a `state_dict`, only
/// those inside it. Numbers and text beside tensors are left out. A Python object beside tensors is an error,
/// and so is everything but tensors in a `state_dict`, and a tensor that cannot be read. Two dictionaries deep,
/// where optimisers keep their state, what cannot be read is left out.
pub(crate) fn tensors(path: &Path, pickle: &Pickle<'_>) -> Result<BTreeMap<String, Rebuilt>, FileError> {
    let mut found = Found { path, pickle, tensors: BTreeMap::new(), seen: 0 };
    let (name, top, strict) = match pickle.get(pickle.top, STATE_DICT) {
        Some(state) => (STATE_DICT, state, true),
        None => ("the top level", pickle.top, false),
    };
    let Value::Dict(items) = pickle.value(top) else {
        return Err(FileError::tensor(path, name, refuse(pickle, top)));
    };
    found.add("", items, 0, strict)?;
    if found.tensors.is_empty() && !strict {
        let problem = "no tensors: expected a dictionary of tensors, or one under `state_dict`";
        return Err(FileError::unusable(path, problem));
    }
    Ok(found.tensors)
}

struct Found<'a> {
    path: &'a Path,
    pickle: &'a Pickle<'a>,
    tensors: BTreeMap<String, Rebuilt>,
    /// Entries looked at: dictionaries may be shared, and hold themselves.
    seen: usize,
}

/// Entries that may be looked at for each byte of a pickle, in which every entry has several: a dictionary of tensors
/// that is saved under two names is read twice, and a few bytes do not take long.
const MAX_ENTRIES_PER_BYTE: usize = 16;

impl Found<'_> {
    fn add(&mut self, prefix: &str, items: &[(Id, Id)], depth: usize, strict: bool) -> Result<(), FileError> {
        let pickle = self.pickle;
        let most = MAX_OBJECTS.min(MAX_ENTRIES_PER_BYTE * pickle.len) as u64;
        let among_tensors = items.iter().any(|it| is_tensor(pickle, it.1));
        for &(key, value) in items {
            self.seen += 1;
            check_limit(self.path, "the number of nested entries", most, self.seen as u64)?;
            let name = match pickle.value(key) {
                Value::Text(text) => format!("{prefix}{}", pickle.text(*text)),
                Value::Int(number) if !strict => format!("{prefix}{number}"),
                other if strict || among_tensors && depth < 2 => {
                    let problem = format!("expected a string as its name, got {}", other.kind());
                    return Err(FileError::tensor(self.path, "an entry", problem));
                }
                _ => continue,
            };
            match pickle.value(value) {
                Value::Dict(inner) if depth < MAX_DEPTH && name.len() < MAX_NAME_BYTES => {
                    self.add(&format!("{name}."), inner, depth + 1, strict)?;
                    continue;
                }
                Value::Global { .. } | Value::Call { .. } if among_tensors => {}
                _ if !strict => continue,
                _ => {}
            }
            let tensor = match self.read(&name, value) {
                Ok(tensor) => tensor,
                Err(problem) if strict || depth < 2 => {
                    return Err(FileError::tensor(self.path, &name, problem));
                }
                Err(_) => continue,
            };
            self.tensors.insert(name, tensor);
            check_limit(self.path, "the number of tensors", MAX_TENSORS as u64, self.tensors.len() as u64)?;
        }
        Ok(())
    }

    fn read(&self, name: &str, value: Id) -> Result<Rebuilt, String> {
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("its name has {} bytes, the limit is {MAX_NAME_BYTES}", name.len()));
        }
        if self.tensors.contains_key(name) {
            return Err("the name occurs twice".to_string());
        }
        tensor(self.pickle, value)
    }
}

/// A tensor as the pickle describes it: a strided view of a storage. Nothing is checked against the file yet.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) info: TensorInfo,
    pub(crate) strides: Vec<usize>,
    /// The first element, counted in elements from the start of the storage.
    pub(crate) offset: usize,
    pub(crate) storage: Storage,
}

/// A reference to a storage: numbers that lie elsewhere in the file.
#[derive(Debug)]
pub(crate) struct Storage {
    /// Its name in the file.
    pub(crate) key: String,
    /// Number of elements of the whole storage.
    pub(crate) count: u64,
    /// Size of an element in bytes.
    pub(crate) element: u64,
    /// The part of it that the reference names, in bytes.
    pub(crate) part: Range<u64>,
    /// Type of its elements, if it has a counterpart here.
    dtype: Option<DType>,
    /// The name of its class.
    class: String,
}

/// Why a value is not a tensor.
type Problem<T> = Result<T, String>;

/// Parameters wrap tensors; nothing that PyTorch writes wraps them twice.
const MAX_WRAPPERS: usize = 4;

/// Whether a value looks like a tensor, readable or not.
pub(crate) fn is_tensor(pickle: &Pickle<'_>, id: Id) -> bool {
    match pickle.value(id) {
        Value::Call { callee, .. } => {
            matches!(pickle.global(*callee), Some(("torch._utils", name)) if name.starts_with("_rebuild_"))
        }
        _ => false,
    }
}

/// Reads a value as a tensor.
pub(crate) fn tensor(pickle: &Pickle<'_>, mut id: Id) -> Problem<Rebuilt> {
    for _ in 0..MAX_WRAPPERS {
        let Value::Call { callee, args } = pickle.value(id) else { return Err(refuse(pickle, id)) };
        let Value::Tuple(items) = pickle.value(*args) else {
            return Err("its arguments are not a tuple".to_string());
        };
        let Some(("torch._utils", function)) = pickle.global(*callee) else {
            return Err(refuse(pickle, id));
        };
        match (function, &items[..]) {
            ("_rebuild_tensor", [storage, view @ ..]) if view.len() == 3 => {
                return rebuild(pickle, *storage, None, view);
            }
            ("_rebuild_tensor_v2", [storage, view @ ..]) => return rebuild(pickle, *storage, None, view),
            ("_rebuild_tensor_v3", [storage, offset, size, stride, grad, hooks, dtype, rest @ ..]) => {
                let view = [&[*offset, *size, *stride, *grad, *hooks], rest].concat();
                return rebuild(pickle, *storage, Some(dtype_object(pickle, *dtype)?), &view);
            }
            ("_rebuild_parameter", [data, _grad, hooks])
            | ("_rebuild_parameter_with_state", [data, _grad, hooks, _]) => {
                nothing(pickle, *hooks)?;
                id = *data;
            }
            (name, _) if name.starts_with("_rebuild_") => {
                return Err(format!("{} with {} arguments is not understood", clip(name), items.len()));
            }
            _ => return Err(refuse(pickle, id)),
        }
    }
    Err("it is wrapped too often".to_string())
}

/// Says what a value is that is not a tensor.
pub(crate) fn refuse(pickle: &Pickle<'_>, id: Id) -> String {
    let named = match pickle.value(id) {
        Value::Call { callee, .. } => *callee,
        _ => id,
    };
    match pickle.global(named) {
        Some((module, name)) => {
            let object = clip(&format!("{}.{}", clip(module), clip(name)));
            format!(
                "it refers to `{object}`, which is not loaded because it could run code; expected a tensor"
            )
        }
        None => format!("expected a tensor, got {}", pickle.value(id).kind()),
    }
}

/// Reads `("storage", class, key, location, count[, view])`. The location is the device it was saved from,
/// which is ignored; `view` is None, or `(key, offset, count)` of the part it names.
pub(crate) fn storage(pickle: &Pickle<'_>, id: Id) -> Problem<Storage> {
    let Value::Persistent(reference) = pickle.value(id) else { return Err(refuse(pickle, id)) };
    let Value::Tuple(items) = pickle.value(*reference) else {
        return Err("its storage is not a tuple".to_string());
    };
    let [tag, class, key, location, count, view @ ..] = &items[..] else {
        return Err(format!("its storage has {} parts, expected 5 or 6", items.len()));
    };
    if pickle.str(*tag) != Some("storage") || pickle.str(*location).is_none() || view.len() > 1 {
        return Err("its storage is not a reference to a storage".to_string());
    }
    let Some(key) = pickle.str(*key).filter(|key| key.len() <= MAX_NAME_BYTES) else {
        return Err("the key of its storage is not a short string".to_string());
    };
    let (class, element, dtype) = storage_class(pickle, *class)?;
    let count = natural(pickle, *count)
        .ok()
        .filter(|count| count.checked_mul(element).is_some_and(|bytes| bytes <= isize::MAX as usize))
        .ok_or_else(|| "its storage has an impossible size".to_string())?;
    let (from, to) = match view.first().map(|it| pickle.value(*it)) {
        None | Some(Value::Plain("None")) => (0, count),
        Some(Value::Tuple(view)) if view.len() == 3 => {
            let from = natural(pickle, view[1])?;
            (from, from.saturating_add(natural(pickle, view[2])?))
        }
        Some(_) => return Err("the view of its storage is not understood".to_string()),
    };
    if to > count {
        return Err(format!("the view of its storage ends at {to} of {count} elements"));
    }
    let (count, element) = (count as u64, element as u64);
    let part = from as u64 * element..to as u64 * element;
    Ok(Storage { key: key.to_string(), count, element, part, dtype, class: clip(class) })
}

/// Storage classes, objects such as `torch.float32`, and their element types.
const TYPES: [(&str, &[&str], DType); 11] = [
    ("FloatStorage", &["float32", "float"], DType::F32),
    ("DoubleStorage", &["float64", "double"], DType::F64),
    ("HalfStorage", &["float16", "half"], DType::F16),
    ("BFloat16Storage", &["bfloat16"], DType::BF16),
    ("LongStorage", &["int64", "long"], DType::I64),
    ("IntStorage", &["int32", "int"], DType::I32),
    ("ShortStorage", &["int16", "short"], DType::I16),
    ("ByteStorage", &["uint8"], DType::U8),
    ("BoolStorage", &["bool"], DType::U8),
    ("", &["uint32"], DType::U32),
    ("", &["float8_e4m3fn"], DType::F8E4M3),
];

/// Name, size and type of a storage class's elements.
fn storage_class<'a>(pickle: &'a Pickle<'_>, id: Id) -> Problem<(&'a str, usize, Option<DType>)> {
    let Some((module, name)) = pickle.global(id) else { return Err(refuse(pickle, id)) };
    let known = TYPES.iter().find(|it| !name.is_empty() && it.0 == name).map(|it| it.2);
    match (module, name, known) {
        ("torch" | "torch.storage", "UntypedStorage", _) => Ok((name, 1, Some(DType::U8))),
        ("torch", _, Some(dtype)) => Ok((name, dtype.size_in_bytes(), Some(dtype))),
        ("torch", "ComplexDoubleStorage", _) => Ok((name, 16, None)),
        ("torch", "ComplexFloatStorage", _) => Ok((name, 8, None)),
        ("torch", "QInt32Storage", _) => Ok((name, 4, None)),
        ("torch", other, _) if other.ends_with("Storage") => Ok((name, 1, None)),
        ("torch.storage", "TypedStorage" | "_LegacyStorage", _) => {
            Err("its storage class does not tell the element type".to_string())
        }
        _ => Err(refuse(pickle, id)),
    }
}

/// The element type of an object such as `torch.float32`.
fn dtype_object(pickle: &Pickle<'_>, id: Id) -> Problem<DType> {
    const OTHERS: [&str; 7] = ["int8", "uint16", "uint64", "float8_", "complex", "qint", "quint"];
    let Some(("torch", name)) = pickle.global(id) else { return Err(refuse(pickle, id)) };
    match TYPES.iter().find(|it| it.1.contains(&name)) {
        Some(it) => Ok(it.2),
        None if OTHERS.iter().any(|it| name.starts_with(it)) => Err(unsupported(name)),
        None => Err(refuse(pickle, id)),
    }
}

/// Reads `(offset, size, stride[, requires_grad, hooks[, metadata]])`.
fn rebuild(pickle: &Pickle<'_>, storage: Id, dtype: Option<DType>, view: &[Id]) -> Problem<Rebuilt> {
    let storage = self::storage(pickle, storage)?;
    let dtype = dtype.or(storage.dtype).ok_or_else(|| unsupported(&storage.class))?;
    let (offset, size, stride) = match view {
        [offset, size, stride] => (*offset, *size, *stride),
        [offset, size, stride, _requires_grad, hooks, metadata @ ..] if metadata.len() <= 1 => {
            nothing(pickle, *hooks)?;
            // Marks such as "negated", without which the numbers are wrong.
            metadata.iter().try_for_each(|it| nothing(pickle, *it))?;
            (*offset, *size, *stride)
        }
        _ => return Err(format!("it has {} arguments, expected 6 or 7", view.len() + 1)),
    };
    let (shape, strides) = (sizes(pickle, size)?, sizes(pickle, stride)?);
    if shape.len() != strides.len() {
        return Err(format!("it has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    checked_elements(&shape)?;
    let offset = natural(pickle, offset)?;
    Ok(Rebuilt { info: TensorInfo { dtype, shape }, strides, offset, storage })
}

fn unsupported(dtype: &str) -> String {
    format!("unsupported element type {}", clip(dtype))
}

/// Accepts nothing and the empty dictionary.
fn nothing(pickle: &Pickle<'_>, id: Id) -> Problem<()> {
    match pickle.value(id) {
        Value::Plain("None") => Ok(()),
        Value::Dict(items) if items.is_empty() => Ok(()),
        Value::Global { .. } | Value::Call { .. } => Err(refuse(pickle, id)),
        _ => Err("it carries hooks or marks that are not understood".to_string()),
    }
}

fn sizes(pickle: &Pickle<'_>, mut id: Id) -> Problem<Vec<usize>> {
    // torch.Size((..)), as some versions write it.
    if let Value::Call { callee, args } = pickle.value(id)
        && pickle.global(*callee) == Some(("torch", "Size"))
        && let Value::Tuple(args) = pickle.value(*args)
        && let [inner] = args[..]
    {
        id = inner;
    }
    let Value::Tuple(items) = pickle.value(id) else {
        return Err(format!("expected a tuple of sizes, got {}", pickle.value(id).kind()));
    };
    if items.len() > MAX_RANK {
        return Err(format!("it has {} dimensions, the limit is {MAX_RANK}", items.len()));
    }
    items.iter().map(|&item| natural(pickle, item)).collect()
}

fn natural(pickle: &Pickle<'_>, id: Id) -> Problem<usize> {
    match pickle.value(id) {
        Value::Int(value) => usize::try_from(*value).map_err(|_| format!("{value} is not a size")),
        other => Err(format!("expected an integer, got {}", other.kind())),
    }
}
