//! An opened checkpoint of any format.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::error::{check_limit, clip, list};
use crate::limits::{MAX_HEADER_BYTES, MAX_PARTS, MAX_TENSORS};
use crate::place::{Contents, Place};
use crate::safetensors_file::{self, Unique};
use crate::source::Source;
use crate::torch::{self, legacy::magic_bytes};
use crate::{FileError, Renamed, TensorInfo, TensorSource};

/// A checkpoint's container, told by its content and never by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A JSON header and raw numbers.
    Safetensors,
    /// Several such files, and a JSON index of their tensors.
    SafetensorsIndex,
    /// A zip archive of a pickle and raw numbers, as `torch.save` writes since PyTorch 1.6.
    TorchZip,
    /// Pickles followed by raw numbers, as `torch.save` wrote before.
    TorchLegacy,
}

/// An opened checkpoint: its names, types and shapes; tensors are read when asked for.
///
/// The names of a PyTorch file are the keys of its `state_dict` (Lightning), or else of its dictionaries,
/// joined by dots: `{"model": {"w": ..}, "ema": {"w": ..}}` has `model.w` and `ema.w`. Everything
/// beside dictionaries of tensors is left out.
///
/// Threads may share it; the file is not mapped into memory, so it may not be changed, but it may be removed.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    /// One file, or the parts of an index.
    sources: Vec<Source>,
    /// Of each tensor, the number of its file and its place there.
    tensors: BTreeMap<String, (usize, Place)>,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a file and reads its table of contents.
    ///
    /// Safetensors in several files are opened by their index (`*.safetensors.index.json`) or its folder.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for other formats, damaged files, sizes above the limits, what is no tensor (code,
    /// for instance) among the tensors, and an index that contradicts its files; [`FileError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let source = Source::open(&if path.is_dir() { find_index(path)? } else { path.to_owned() })?;
        match detect(&source)? {
            Format::SafetensorsIndex => Self::of_index(&source),
            format => Self::of_one(source, format),
        }
    }

    /// Opens bytes in memory; `name` is the path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, FileError> {
        let source = Source::from_bytes(bytes.into(), name);
        let format = detect(&source)?;
        Self::of_one(source, format)
    }

    fn of_one(source: Source, format: Format) -> Result<Self, FileError> {
        let path = source.path().to_owned();
        let Contents { tensors, metadata } = match format {
            Format::Safetensors => safetensors_file::contents(&source)?,
            Format::SafetensorsIndex => {
                return Err(FileError::unusable(&path, "an index of safetensors files; open it by its path"));
            }
            Format::TorchZip => torch::zip_contents(&source)?,
            Format::TorchLegacy => torch::legacy_contents(&source)?,
        };
        let tensors = tensors.into_iter().map(|(name, place)| (name, (0, place))).collect();
        Ok(Self { path, format, sources: vec![source], tensors, metadata })
    }

    /// Opens an index and its parts, which are in the same folder.
    ///
    /// ```text
    /// model.safetensors.index.json       {"metadata": {..}, "weight_map": {"name": "file", ..}}
    /// model-00001-of-00002.safetensors
    /// model-00002-of-00002.safetensors
    /// ```
    fn of_index(index: &Source) -> Result<Self, FileError> {
        #[derive(serde::Deserialize)]
        struct Index {
            #[serde(default)]
            metadata: BTreeMap<String, Value>,
            weight_map: Unique<String>,
        }
        let path = index.path();
        let wrong = |problem: String| FileError::unusable(path, problem);
        check_limit(path, "the length of the index", MAX_HEADER_BYTES, index.len())?;
        let Index { metadata, weight_map: Unique(listed) } =
            serde_json::from_slice(&index.read("the index", 0, index.len())?).map_err(|error| {
                wrong(format!("invalid index of safetensors: {}", clip(&error.to_string())))
            })?;
        let files: BTreeSet<&str> = listed.values().map(String::as_str).collect();
        let files: Vec<&str> = files.into_iter().collect();
        check_limit(path, "the number of parts", MAX_PARTS, files.len() as u64)?;

        let (mut sources, mut tensors) = (Vec::new(), BTreeMap::new());
        for (number, file) in files.iter().enumerate() {
            let inside = |it: Component<'_>| matches!(it, Component::Normal(_));
            if file.is_empty() || !Path::new(file).components().all(inside) {
                return Err(wrong(format!("its part `{}` is outside its folder", clip(file))));
            }
            let source =
                Source::open(&path.with_file_name(file)).map_err(|error| match error.is_missing_file() {
                    true => wrong(format!("its part `{}` is missing; download all of them", clip(file))),
                    false => error,
                })?;
            for (name, place) in safetensors_file::contents(&source)?.tensors {
                let shown = clip(&name);
                if let Some((first, _)) = tensors.insert(name, (number, place)) {
                    let (first, second) = (clip(files[first]), clip(file));
                    return Err(wrong(format!("tensor `{shown}` is in two parts, `{first}` and `{second}`")));
                }
            }
            check_limit(path, "the number of tensors", MAX_TENSORS as u64, tensors.len() as u64)?;
            sources.push(source);
        }
        let absent = |(name, file): &(&String, &String)| {
            tensors.get(*name).is_none_or(|it| files[it.0] != file.as_str())
        };
        if let Some((name, file)) = listed.iter().find(absent) {
            return Err(wrong(format!("tensor `{}` is not in its part `{}`", clip(name), clip(file))));
        }
        let text = |(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        };
        let (path, format) = (path.to_owned(), Format::SafetensorsIndex);
        Ok(Self { path, format, sources, tensors, metadata: metadata.into_iter().map(text).collect() })
    }

    /// The container's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file, or the name given to the bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its files: one, or an index and its parts.
    pub fn files(&self) -> Vec<&Path> {
        let index = (self.format == Format::SafetensorsIndex).then_some(self.path());
        index.into_iter().chain(self.sources.iter().map(Source::path)).collect()
    }

    /// The text entries of a safetensors file or index; empty for a PyTorch file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Type and shape of a tensor, or `None` if there is no such name. Reads nothing.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|(_, place)| place.info.clone())
    }

    /// Reads one tensor, in its stored type, and nothing else of the file.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for an unknown name, or a file that has changed or is damaged.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        let (source, place) = self.place(name)?;
        place.read(source, name, None, device)
    }

    /// Reads `count` rows of a tensor from `first` on, rows being counted along its first axis, and
    /// nothing else of the file.
    ///
    /// # Errors
    /// [`FileError::Unusable`] for rows that do not exist, and as [`tensor`](Self::tensor).
    pub fn rows(&self, name: &str, first: usize, count: usize, device: &Device) -> Result<Tensor, FileError> {
        let (source, place) = self.place(name)?;
        place.read(source, name, Some(first..first.saturating_add(count)), device)
    }

    /// The tensors whose names begin with `prefix`, which includes its final dot, named without it.
    pub fn with_prefix(&self, prefix: &str) -> Renamed<'_, Self> {
        Renamed::without_prefix(self, prefix)
    }

    fn place(&self, name: &str) -> Result<(&Source, &Place), FileError> {
        let found = self.tensors.get(name).map(|(number, place)| (&self.sources[*number], place));
        found.ok_or_else(|| FileError::not_found(self.path(), name))
    }
}

impl TensorSource for Checkpoint {
    fn path(&self) -> &Path {
        self.path()
    }

    fn names(&self) -> Vec<&str> {
        self.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.info(name)
    }

    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        self.tensor(name, device)
    }
}

/// The first bytes of a zip entry, of an empty archive, and the position and name of a tar archive's mark.
const ZIP_MARKS: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
const TAR_MARK: (usize, &[u8]) = (257, b"ustar");

fn detect(source: &Source) -> Result<Format, FileError> {
    let head = source.read("the first bytes", 0, source.len().min(262))?;
    if ZIP_MARKS.iter().any(|mark| head.starts_with(mark)) {
        return Ok(Format::TorchZip);
    }
    // The first byte of the JSON header; before pickles, since a length may look like one's first bytes.
    if head.get(8) == Some(&b'{') {
        return Ok(Format::Safetensors);
    }
    if magic_bytes(&head).is_some() {
        return Ok(Format::TorchLegacy);
    }
    if head.first() == Some(&b'{') {
        return Ok(Format::SafetensorsIndex);
    }
    let tar = head.get(TAR_MARK.0..).is_some_and(|rest| rest.starts_with(TAR_MARK.1));
    let pickle =
        head.first() == Some(&0x80) && head.get(1).is_some_and(|protocol| (2..=5).contains(protocol));
    let problem = if tar {
        "a tar archive, as PyTorch wrote before 0.2; load it in PyTorch and save it again"
    } else if pickle {
        "a bare pickle, not a file of torch.save; load it in Python and save its tensors with torch.save"
    } else {
        "neither safetensors nor a PyTorch file; if it was downloaded, check that it is complete"
    };
    Err(FileError::unusable(source.path(), problem))
}

/// The index in a folder.
fn find_index(folder: &Path) -> Result<PathBuf, FileError> {
    const INDEX: &str = ".safetensors.index.json";
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Tensors of names, types and shapes, safetensors in memory.
    pub(crate) fn in_memory(tensors: &[(&str, &str, &str)], data: &[u8]) -> Checkpoint {
        let mut begin = 0;
        let entry = |(name, dtype, shape): &(&str, &str, &str)| {
            let sizes: Vec<usize> = serde_json::from_str(shape).unwrap();
            let bytes = sizes.iter().product::<usize>() * dtype[1..].parse::<usize>().unwrap() / 8;
            begin += bytes;
            let offsets = [begin - bytes, begin];
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets:?}}}"#)
        };
        let header = format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","));
        let length = (header.len() as u64).to_le_bytes();
        Checkpoint::from_bytes([&length[..], header.as_bytes(), data].concat(), "test").unwrap()
    }

    #[test]
    fn other_formats_are_named() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, expected) in [
            (b"".to_vec(), "neither safetensors nor"),
            (b"\x93NUMPY\x01\x00".to_vec(), "neither safetensors nor"),
            (b"<!DOCTYPE html>".to_vec(), "neither safetensors nor"),
            (b"{\"weight_map\": {}}".to_vec(), "open it by its path"),
            (b"\x80\x02}.".to_vec(), "bare pickle"),
            (tar, "tar archive"),
        ] {
            let error = Checkpoint::from_bytes(bytes, "test").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn safetensors_in_memory() {
        let checkpoint = in_memory(&[("x", "I16", "[2]"), ("s", "U8", "[]")], &[1, 0, 0xff, 0xff, 7]);
        assert_eq!(checkpoint.format(), Format::Safetensors);
        let x = checkpoint.tensor("x", &Device::Cpu).unwrap().to_vec1::<i16>().unwrap();
        assert_eq!(x, [1, -1]);
        let last = checkpoint.rows("x", 1, 1, &Device::Cpu).unwrap().to_vec1::<i16>().unwrap();
        assert_eq!(last, [-1]);
        for (name, first, count) in [("x", 1, 2), ("x", 3, 0), ("x", usize::MAX, 2), ("s", 0, 0), ("s", 0, 1)]
        {
            let error = checkpoint.rows(name, first, count, &Device::Cpu).unwrap_err().to_string();
            assert!(error.contains("expected rows below"), "{error}");
        }
        let missing = checkpoint.tensor("y", &Device::Cpu).unwrap_err();
        assert_eq!(missing.to_string(), "test: `y`: no tensor of this name");
    }
}
