//! Safetensors in one file, or in several with an index that says which file has which tensor.
//!
//! ```text
//! model.safetensors.index.json       {"metadata": {..}, "weight_map": {"name": "file", ..}}
//! model-00001-of-00002.safetensors
//! model-00002-of-00002.safetensors
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::FileError;
use crate::error::{check_limit, clip, list};
use crate::limits::{MAX_HEADER_BYTES, MAX_PARTS, MAX_TENSORS};
use crate::safetensors_file::{SafetensorsFile, UniqueText};
use crate::source::Source;

/// The name of an index ends with this.
const INDEX: &str = ".safetensors.index.json";

/// The tensors of one or several files.
#[derive(Debug)]
pub(crate) struct Shards {
    parts: Vec<(Source, SafetensorsFile)>,
    /// The part that has each tensor.
    tensors: BTreeMap<String, usize>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Index {
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
    weight_map: UniqueText,
}

impl Shards {
    /// Opens a single file.
    pub(crate) fn one(source: Source) -> Result<Self, FileError> {
        let mut file = SafetensorsFile::open(&source)?;
        let tensors = file.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { tensors, metadata: std::mem::take(&mut file.metadata), parts: vec![(source, file)] })
    }

    /// Opens an index and its parts, which are in the same folder.
    pub(crate) fn of_index(index: &Source) -> Result<Self, FileError> {
        let wrong = |problem: String| FileError::unusable(index.path(), problem);
        check_limit(index.path(), "the length of the index", MAX_HEADER_BYTES, index.len())?;
        let json = index.read("the index", 0, index.len())?;
        let Index { metadata, weight_map: UniqueText(listed) } = serde_json::from_slice(&json)
            .map_err(|error| wrong(format!("invalid index of safetensors: {}", clip(&error.to_string()))))?;
        let mut numbers = BTreeMap::new();
        for file in listed.values() {
            let path = Path::new(file);
            if file.is_empty() || !path.components().all(|it| matches!(it, Component::Normal(_))) {
                return Err(wrong(format!("its part `{}` is outside its folder", clip(file))));
            }
            let next = numbers.len();
            numbers.entry(file.as_str()).or_insert(next);
            check_limit(index.path(), "the number of parts", MAX_PARTS, numbers.len() as u64)?;
        }
        let mut files: Vec<&str> = vec![""; numbers.len()];
        numbers.iter().for_each(|(file, &number)| files[number] = file);

        let (mut parts, mut tensors) = (Vec::new(), BTreeMap::new());
        for (number, file) in files.iter().enumerate() {
            let path = index.path().with_file_name(file);
            let source = Source::open(&path).map_err(|error| match error.is_missing_file() {
                true => wrong(format!("its part `{}` is missing; download all of them", clip(file))),
                false => error,
            })?;
            let part = SafetensorsFile::open(&source)?;
            for name in part.tensors.keys() {
                match tensors.entry(name.clone()) {
                    Entry::Vacant(it) => drop(it.insert(number)),
                    Entry::Occupied(it) => {
                        let first = files[*it.get()];
                        let problem = format!(
                            "tensor `{name}` is in two parts, `{}` and `{}`",
                            clip(first),
                            clip(file)
                        );
                        return Err(wrong(problem));
                    }
                }
            }
            check_limit(index.path(), "the number of tensors", MAX_TENSORS as u64, tensors.len() as u64)?;
            parts.push((source, part));
        }
        let absent = |(name, file): &(&String, &String)| tensors.get(*name) != numbers.get(file.as_str());
        if let Some((name, file)) = listed.iter().find(absent) {
            return Err(wrong(format!("tensor `{}` is not in its part `{}`", clip(name), clip(file))));
        }
        let text = |(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        };
        Ok(Self { parts, tensors, metadata: metadata.into_iter().map(text).collect() })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// The part that has a tensor.
    pub(crate) fn part(&self, name: &str) -> Option<(&Source, &SafetensorsFile)> {
        self.tensors.get(name).map(|&number| &self.parts[number]).map(|(source, file)| (source, file))
    }
}

/// The index in a folder.
pub(crate) fn find_index(folder: &Path) -> Result<PathBuf, FileError> {
    let entries = std::fs::read_dir(folder).map_err(FileError::io("read", folder))?;
    let names = entries.filter_map(Result::ok).map(|it| it.file_name().to_string_lossy().into_owned());
    let mut indices: Vec<String> = names.filter(|it| it.ends_with(INDEX)).collect();
    indices.sort();
    match indices.as_slice() {
        [one] => Ok(folder.join(one)),
        [] => Err(FileError::unusable(folder, format!("a folder without a file *{INDEX}; name a file"))),
        several => Err(FileError::unusable(folder, format!("it has {}; name one of them", list(several)))),
    }
}
