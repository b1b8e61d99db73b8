//! Named tensors of known type and shape: the one interface of loaders, and views of it under other names.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::FileError;
use crate::limits::MAX_RANK;

/// Type and shape of a tensor, known before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type; booleans are `U8`.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Named tensors that can be read one at a time.
pub trait TensorSource {
    /// The file behind the tensors, for messages.
    fn path(&self) -> &Path;

    /// All names, sorted.
    fn names(&self) -> Vec<&str>;

    /// Type and shape of a tensor, or `None` if there is no such name. Reads nothing.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads one tensor, in its stored type.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for an unknown name, or a file that has changed or is damaged.
    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError>;
}

/// The tensors of a source under other names.
#[derive(Debug)]
pub struct Renamed<'a, S: ?Sized> {
    source: &'a S,
    // New name to stored name.
    names: BTreeMap<String, String>,
}

impl<'a, S: TensorSource + ?Sized> Renamed<'a, S> {
    /// Gives every stored name the name that `rename` returns for it; `None` hides the tensor.
    ///
    /// # Errors
    /// [`FileError::Unusable`] if two tensors would get the same name.
    pub fn new(source: &'a S, rename: impl Fn(&str) -> Option<String>) -> Result<Self, FileError> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for stored in source.names() {
            let Some(name) = rename(stored) else { continue };
            if let Some(first) = names.get(&name) {
                let problem = format!("both `{first}` and `{stored}` would have this name");
                return Err(FileError::tensor(source.path(), &name, problem));
            }
            names.insert(name, stored.to_string());
        }
        Ok(Self { source, names })
    }

    /// The tensors whose names begin with `prefix`, which includes its final dot, named without it.
    pub fn without_prefix(source: &'a S, prefix: &str) -> Self {
        let named = |stored: &str| Some((stored.strip_prefix(prefix)?.to_owned(), stored.to_owned()));
        Self { names: source.names().into_iter().filter_map(named).collect(), source }
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Renamed<'_, S> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(self.names.get(name)?)
    }

    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        match self.names.get(name) {
            Some(stored) => self.source.tensor(stored, device),
            None => Err(FileError::not_found(self.path(), name)),
        }
    }
}

/// Returns the number of elements, or what is wrong with `shape`.
///
/// A dimension of zero does not excuse the others: libraries multiply them in any order.
pub(crate) fn checked_elements(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("{} dimensions, the limit is {MAX_RANK}", shape.len()));
    }
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)))
        // Eight bytes is the largest element: the size in bytes fits as well.
        .filter(|&product| product <= isize::MAX as usize / 8)
        .ok_or_else(|| format!("shape {shape:?} has too many elements"))?;
    Ok(shape.iter().product())
}

/// Returns the size in bytes, or what is wrong with `shape`.
pub(crate) fn checked_bytes(dtype: DType, shape: &[usize]) -> Result<u64, String> {
    Ok((checked_elements(shape)? * dtype.size_in_bytes()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::checkpoint::tests::in_memory;

    fn checkpoint() -> Checkpoint {
        in_memory(&[("ema.a", "U8", "[1]"), ("ema.b", "U8", "[1]"), ("raw.a", "U8", "[1]")], &[10, 20, 30])
    }

    fn value(source: &impl TensorSource, name: &str) -> u8 {
        source.tensor(name, &Device::Cpu).unwrap().to_vec1().unwrap()[0]
    }

    #[test]
    fn a_prefix_is_removed() {
        let checkpoint = checkpoint();
        let view = checkpoint.with_prefix("ema.");
        assert_eq!(view.names(), ["a", "b"]);
        assert_eq!(value(&view, "b"), 20);
        assert_eq!(view.info("a").unwrap().shape, [1]);
        assert!(view.info("ema.a").is_none());
        assert!(checkpoint.with_prefix("none.").names().is_empty());
    }

    #[test]
    fn renaming_stored_names() {
        let checkpoint = checkpoint();
        let view =
            Renamed::new(&checkpoint, |name| Some(name.strip_prefix("ema.")?.replace('a', "x"))).unwrap();
        assert_eq!(view.names(), ["b", "x"]);
        assert_eq!(value(&view, "x"), 10);
        assert!(view.tensor("a", &Device::Cpu).is_err());
        let error = Renamed::new(&checkpoint, |_| Some("same".to_string())).unwrap_err();
        assert!(error.to_string().contains("both `ema.a` and `ema.b`"), "{error}");
    }

    #[test]
    fn giant_shapes_are_refused_even_with_a_zero() {
        assert_eq!(checked_elements(&[]), Ok(1));
        assert_eq!(checked_elements(&[2, 3]), Ok(6));
        assert_eq!(checked_elements(&[4, 0]), Ok(0));
        assert_eq!(checked_bytes(DType::F16, &[2, 3]), Ok(12));
        assert!(checked_elements(&[usize::MAX, 2]).is_err());
        assert!(checked_elements(&[0, usize::MAX, usize::MAX]).is_err());
        assert!(checked_elements(&[usize::MAX]).is_err());
        assert!(checked_elements(&[1; MAX_RANK + 1]).is_err());
    }
}
