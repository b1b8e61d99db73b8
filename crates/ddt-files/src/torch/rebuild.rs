//! From pickled values to tensors: the short list of Python objects that are understood.

use candle_core::DType;

use crate::limits::{MAX_NAME_BYTES, MAX_RANK};
use crate::shape::{checked_elements, clip};
use crate::torch::value::{Id, Pickle, Value};

/// A tensor as the pickle describes it: a strided view of a storage. Nothing is checked against the archive
/// yet.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    /// The first element, counted in elements from the start of the storage.
    pub(crate) offset: usize,
    /// The storage's name in the archive.
    pub(crate) key: String,
    pub(crate) storage_bytes: u64,
}

/// Why a value is no tensor.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It refers to a Python object that is not on the list.
    Global(String),
    /// Its elements have no counterpart.
    Dtype(String),
    /// Anything else.
    Problem(String),
}

/// Parameters wrap tensors; nothing that PyTorch writes wraps them twice.
const MAX_WRAPPERS: usize = 4;

/// Whether a value looks like a tensor, readable or not.
pub(crate) fn is_tensor(pickle: &Pickle, id: Id) -> bool {
    match pickle.value(id) {
        Value::Call { callee, .. } => {
            matches!(pickle.global(*callee), Some(("torch._utils", name)) if name.starts_with("_rebuild_"))
        }
        _ => false,
    }
}

/// Reads a value as a tensor.
pub(crate) fn tensor(pickle: &Pickle, mut id: Id) -> Result<Rebuilt, Refused> {
    for _ in 0..MAX_WRAPPERS {
        let Value::Call { callee, args } = pickle.value(id) else { return Err(refuse(pickle, id)) };
        let Value::Tuple(items) = pickle.value(*args) else {
            return problem("its arguments are not a tuple");
        };
        match (pickle.global(*callee), &items[..]) {
            (Some(("torch._utils", "_rebuild_tensor_v2")), [storage, view @ ..]) => {
                let storage = self::storage(pickle, *storage)?;
                let dtype = match storage.element {
                    Element::Typed(dtype) => dtype,
                    Element::Bytes => DType::U8,
                };
                return rebuild(pickle, storage, dtype, view);
            }
            (
                Some(("torch._utils", "_rebuild_tensor_v3")),
                [storage, offset, size, stride, grad, hooks, element, rest @ ..],
            ) => {
                let storage = self::storage(pickle, *storage)?;
                let dtype = dtype_object(pickle, *element)?;
                let view = [&[*offset, *size, *stride, *grad, *hooks], rest].concat();
                return rebuild(pickle, storage, dtype, &view);
            }
            (Some(("torch._utils", "_rebuild_parameter")), [data, _grad, hooks]) => {
                nothing(pickle, *hooks)?;
                id = *data;
            }
            (Some(("torch._utils", "_rebuild_parameter_with_state")), [data, _grad, hooks, _state]) => {
                nothing(pickle, *hooks)?;
                id = *data;
            }
            (Some(("torch._utils", name)), _) if name.starts_with("_rebuild_") => {
                return problem(&format!("{} with {} arguments is not understood", clip(name), items.len()));
            }
            _ => return Err(refuse(pickle, id)),
        }
    }
    problem("it is wrapped too often")
}

/// Says what a value is that is no tensor.
pub(crate) fn refuse(pickle: &Pickle, id: Id) -> Refused {
    let named = match pickle.value(id) {
        Value::Call { callee, .. } => *callee,
        _ => id,
    };
    match pickle.global(named) {
        Some((module, name)) => Refused::Global(clip(&format!("{}.{}", clip(module), clip(name)))),
        None => Refused::Problem(format!("expected a tensor, got {}", pickle.value(id).kind())),
    }
}

struct Storage {
    element: Element,
    key: String,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum Element {
    Typed(DType),
    Bytes,
}

/// Reads `("storage", type, key, location, count)`; the location is the device it was saved from, which is
/// ignored.
fn storage(pickle: &Pickle, id: Id) -> Result<Storage, Refused> {
    let Value::Persistent(reference) = pickle.value(id) else { return Err(refuse(pickle, id)) };
    let Value::Tuple(items) = pickle.value(*reference) else { return problem("its storage is not a tuple") };
    let [tag, class, key, location, count] = items[..] else {
        return problem(&format!("its storage has {} parts, expected 5", items.len()));
    };
    if pickle.str(tag) != Some("storage") || pickle.str(location).is_none() {
        return problem("its storage is not a reference to a storage");
    }
    let Some(key) = pickle.str(key).filter(|key| key.len() <= MAX_NAME_BYTES) else {
        return problem("the key of its storage is not a short string");
    };
    let element = storage_element(pickle, class)?;
    let size = match element {
        Element::Typed(dtype) => dtype.size_in_bytes(),
        Element::Bytes => 1,
    };
    let bytes = u64::try_from(integer(pickle, count)?)
        .ok()
        .and_then(|count| count.checked_mul(size as u64))
        .ok_or_else(|| Refused::Problem("its storage has an impossible size".to_string()))?;
    Ok(Storage { element, key: key.to_string(), bytes })
}

/// The element type of a storage class.
fn storage_element(pickle: &Pickle, id: Id) -> Result<Element, Refused> {
    let Some((module, name)) = pickle.global(id) else { return Err(refuse(pickle, id)) };
    let dtype = match (module, name) {
        ("torch" | "torch.storage", "UntypedStorage") => return Ok(Element::Bytes),
        ("torch", "FloatStorage") => DType::F32,
        ("torch", "DoubleStorage") => DType::F64,
        ("torch", "HalfStorage") => DType::F16,
        ("torch", "BFloat16Storage") => DType::BF16,
        ("torch", "LongStorage") => DType::I64,
        ("torch", "IntStorage") => DType::I32,
        ("torch", "ShortStorage") => DType::I16,
        ("torch", "ByteStorage" | "BoolStorage") => DType::U8,
        ("torch", other) if other.ends_with("Storage") => return Err(Refused::Dtype(clip(other))),
        ("torch.storage", "TypedStorage" | "_LegacyStorage") => {
            return problem("its storage class does not tell the element type");
        }
        _ => return Err(refuse(pickle, id)),
    };
    Ok(Element::Typed(dtype))
}

/// The element type that an object such as `torch.float32` stands for.
fn dtype_object(pickle: &Pickle, id: Id) -> Result<DType, Refused> {
    let Some((module, name)) = pickle.global(id) else { return Err(refuse(pickle, id)) };
    Ok(match (module, name) {
        ("torch", "float32" | "float") => DType::F32,
        ("torch", "float64" | "double") => DType::F64,
        ("torch", "float16" | "half") => DType::F16,
        ("torch", "bfloat16") => DType::BF16,
        ("torch", "int64" | "long") => DType::I64,
        ("torch", "int32" | "int") => DType::I32,
        ("torch", "int16" | "short") => DType::I16,
        ("torch", "uint32") => DType::U32,
        ("torch", "uint8" | "bool") => DType::U8,
        ("torch", "float8_e4m3fn") => DType::F8E4M3,
        ("torch", "int8" | "uint16" | "uint64") => return Err(Refused::Dtype(name.to_string())),
        ("torch", other)
            if ["float8_", "complex", "qint", "quint"].iter().any(|it| other.starts_with(it)) =>
        {
            return Err(Refused::Dtype(clip(other)));
        }
        _ => return Err(refuse(pickle, id)),
    })
}

/// Reads `(offset, size, stride, requires_grad, hooks[, metadata])`.
fn rebuild(pickle: &Pickle, storage: Storage, dtype: DType, view: &[Id]) -> Result<Rebuilt, Refused> {
    let [offset, size, stride, _requires_grad, hooks, metadata @ ..] = view else {
        return problem(&format!("it has {} arguments, expected at least 6", view.len() + 1));
    };
    nothing(pickle, *hooks)?;
    match metadata {
        [] => {}
        // Marks such as "negated", without which the numbers are wrong.
        [metadata] => nothing(pickle, *metadata)?,
        _ => return problem("it has too many arguments"),
    }
    let (shape, strides) = (sizes(pickle, *size)?, sizes(pickle, *stride)?);
    if shape.len() != strides.len() {
        return problem(&format!("it has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    checked_elements(&shape).map_err(Refused::Problem)?;
    let offset = natural(pickle, *offset)?;
    Ok(Rebuilt { dtype, shape, strides, offset, key: storage.key, storage_bytes: storage.bytes })
}

/// Accepts nothing and the empty dictionary.
fn nothing(pickle: &Pickle, id: Id) -> Result<(), Refused> {
    match pickle.value(id) {
        Value::Plain("None") => Ok(()),
        Value::Dict(items) if items.is_empty() => Ok(()),
        Value::Global { .. } | Value::Call { .. } => Err(refuse(pickle, id)),
        _ => problem("it carries hooks or marks that are not understood"),
    }
}

fn sizes(pickle: &Pickle, id: Id) -> Result<Vec<usize>, Refused> {
    let items = match pickle.value(id) {
        Value::Tuple(items) => items,
        // torch.Size((..)), as some versions write it.
        Value::Call { callee, args } if pickle.global(*callee) == Some(("torch", "Size")) => {
            match pickle.value(*args) {
                Value::Tuple(args) if args.len() == 1 => match pickle.value(args[0]) {
                    Value::Tuple(items) => items,
                    _ => return problem("a size is not a tuple"),
                },
                _ => return problem("a size is not a tuple"),
            }
        }
        _ => return Err(refuse(pickle, id)),
    };
    if items.len() > MAX_RANK {
        return problem(&format!("it has {} dimensions, the limit is {MAX_RANK}", items.len()));
    }
    items.iter().map(|&item| natural(pickle, item)).collect()
}

fn natural(pickle: &Pickle, id: Id) -> Result<usize, Refused> {
    let value = integer(pickle, id)?;
    usize::try_from(value).or_else(|_| problem(&format!("{value} is not a size")))
}

fn integer(pickle: &Pickle, id: Id) -> Result<i64, Refused> {
    match pickle.value(id) {
        Value::Int(value) => Ok(*value),
        other => problem(&format!("expected an integer, got {}", other.kind())),
    }
}

fn problem<T>(text: &str) -> Result<T, Refused> {
    Err(Refused::Problem(text.to_string()))
}
