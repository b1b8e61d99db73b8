//! A source under other names: a part of it, or all of it renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::{FileError, TensorInfo, TensorSource};

/// The tensors of a source whose names begin with a prefix, named without it.
#[derive(Debug)]
pub struct Prefixed<'a, S: ?Sized> {
    source: &'a S,
    prefix: &'a str,
}

// Written out: deriving would ask `S` to be `Clone`.
impl<S: ?Sized> Clone for Prefixed<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: ?Sized> Copy for Prefixed<'_, S> {}

impl<'a, S: TensorSource + ?Sized> Prefixed<'a, S> {
    /// A view of `source`; `prefix` includes its final dot.
    pub fn new(source: &'a S, prefix: &'a str) -> Self {
        Self { source, prefix }
    }

    fn stored(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Prefixed<'_, S> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn names(&self) -> Vec<&str> {
        self.source.names().into_iter().filter_map(|name| name.strip_prefix(self.prefix)).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(&self.stored(name))
    }

    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        self.source.tensor(&self.stored(name), device)
    }
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
    ///
    /// [`FileError::Tensor`] if two tensors would get the same name.
    pub fn new(source: &'a S, rename: impl Fn(&str) -> Option<String>) -> Result<Self, FileError> {
        let mut view = Self { source, names: BTreeMap::new() };
        for stored in source.names() {
            if let Some(name) = rename(stored) {
                view.insert(name, stored)?;
            }
        }
        Ok(view)
    }

    /// Finds each of the `wanted` names under the stored name that `stored_name` returns for it.
    ///
    /// Stored tensors that nobody wants keep their names, so that they are still seen as unexpected;
    /// wanted names that are not stored are absent.
    ///
    /// # Errors
    ///
    /// [`FileError::Tensor`] if a tensor that nobody wants already has a wanted name.
    pub fn for_wanted<'w>(
        source: &'a S,
        wanted: impl IntoIterator<Item = &'w str>,
        stored_name: impl Fn(&str) -> String,
    ) -> Result<Self, FileError> {
        let stored: BTreeSet<&str> = source.names().into_iter().collect();
        let mut view = Self { source, names: BTreeMap::new() };
        let mut used = BTreeSet::new();
        for name in wanted {
            if let Some(&found) = stored.get(stored_name(name).as_str()) {
                view.insert(name.to_string(), found)?;
                used.insert(found);
            }
        }
        for &left in stored.difference(&used) {
            view.insert(left.to_string(), left)?;
        }
        Ok(view)
    }

    fn insert(&mut self, name: String, stored: &str) -> Result<(), FileError> {
        match self.names.get(&name) {
            Some(first) if first != stored => {
                let problem = format!("both `{first}` and `{stored}` would have this name");
                Err(FileError::tensor(self.source.path(), &name, problem))
            }
            _ => {
                self.names.insert(name, stored.to_string());
                Ok(())
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;

    fn checkpoint() -> Checkpoint {
        let header =
            br#"{"ema.a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"ema.b":{"dtype":"U8","shape":[1],
            "data_offsets":[1,2]},"raw.a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend([10, 20, 30]);
        Checkpoint::from_bytes(bytes, "test").unwrap()
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
    fn finding_wanted_names() {
        let checkpoint = checkpoint();
        let view =
            Renamed::for_wanted(&checkpoint, ["one", "gone"], |name| name.replace("one", "raw.a")).unwrap();
        assert_eq!(view.names(), ["ema.a", "ema.b", "one"]);
        assert_eq!(value(&view, "one"), 30);
        let swapped = Renamed::for_wanted(&checkpoint, ["ema.a"], |_| "raw.a".to_string());
        assert!(matches!(swapped, Err(FileError::Tensor { .. })));
    }
}
