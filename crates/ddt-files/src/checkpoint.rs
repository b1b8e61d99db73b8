//! An opened checkpoint of any format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::shards::{Shards, find_index};
use crate::source::Source;
use crate::torch::TorchFile;
use crate::torch::legacy::MAGIC;
use crate::{FileError, Prefixed, TensorInfo, TensorSource};

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
    content: Content,
}

#[derive(Debug)]
enum Content {
    Safetensors(Shards),
    Torch(Source, TorchFile),
}

impl Checkpoint {
    /// Opens a file and reads its table of contents.
    ///
    /// Safetensors in several files are opened by their index (`*.safetensors.index.json`) or its folder.
    ///
    /// # Errors
    ///
    /// [`FileError::Unusable`] for other formats, damaged files, sizes above the limits, what is no tensor (code,
    /// for instance) among the tensors, and an index that contradicts its files; [`FileError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref();
        let source = Source::open(&if path.is_dir() { find_index(path)? } else { path.to_owned() })?;
        match detect(&source)? {
            format @ Format::SafetensorsIndex => {
                let content = Content::Safetensors(Shards::of_index(&source)?);
                Ok(Self { path: source.path().to_owned(), format, content })
            }
            format => Self::of_one(source, format),
        }
    }

    /// Opens bytes in memory; `name` is the path in messages.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, FileError> {
        let source = Source::from_bytes(bytes.into(), name);
        let format = detect(&source)?;
        Self::of_one(source, format)
    }

    fn of_one(source: Source, format: Format) -> Result<Self, FileError> {
        let path = source.path().to_owned();
        let content = match format {
            Format::Safetensors => Content::Safetensors(Shards::one(source)?),
            Format::SafetensorsIndex => {
                return Err(FileError::unusable(&path, "an index of safetensors files; open it by its path"));
            }
            Format::TorchZip => {
                let file = TorchFile::open_zip(&source)?;
                Content::Torch(source, file)
            }
            Format::TorchLegacy => {
                let file = TorchFile::open_legacy(&source)?;
                Content::Torch(source, file)
            }
        };
        Ok(Self { path, format, content })
    }

    /// The container's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file, or the name given to the bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text entries of a safetensors file or index; empty for a PyTorch file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match &self.content {
            Content::Safetensors(shards) => &shards.metadata,
            Content::Torch(..) => &NONE,
        }
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        match &self.content {
            Content::Safetensors(shards) => shards.names().map(String::as_str).collect(),
            Content::Torch(_, file) => file.tensors.keys().map(String::as_str).collect(),
        }
    }

    /// Type and shape of a tensor, or `None` if there is no such name. Reads nothing.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        match &self.content {
            Content::Safetensors(shards) => shards.part(name)?.1.tensors.get(name).map(|it| it.info.clone()),
            Content::Torch(_, file) => file.tensors.get(name).map(|it| it.info.clone()),
        }
    }

    /// Reads one tensor, in its stored type, and nothing else of the file.
    ///
    /// # Errors
    ///
    /// [`FileError::Unusable`] for an unknown name, or a file that has changed or is damaged.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        let tensor = match &self.content {
            Content::Safetensors(shards) => match shards.part(name) {
                Some((source, file)) => file.tensor(source, name, device)?,
                None => None,
            },
            Content::Torch(source, file) => file.tensor(source, name, device)?,
        };
        tensor.ok_or_else(|| FileError::not_found(self.path(), name))
    }

    /// Reads `count` rows of a tensor from `first` on, rows being counted along its first axis, and
    /// nothing else of the file. Safetensors files only.
    ///
    /// # Errors
    ///
    /// [`FileError::Unusable`] for any name of a PyTorch file and for rows that do not exist; and as
    /// [`tensor`](Self::tensor).
    pub fn rows(&self, name: &str, first: usize, count: usize, device: &Device) -> Result<Tensor, FileError> {
        let part = match &self.content {
            Content::Safetensors(shards) => shards.part(name),
            Content::Torch(..) => None,
        };
        let rows = match part {
            Some((source, file)) => file.rows(source, name, first, count, device)?,
            None => None,
        };
        rows.ok_or_else(|| FileError::not_found(self.path(), name))
    }

    /// The tensors whose names begin with `prefix`, named without it.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> Prefixed<'a, Self> {
        Prefixed::new(self, prefix)
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
    if head.starts_with(MAGIC) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let header = br#"{"x":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend([1, 0, 0xff, 0xff]);
        let checkpoint = Checkpoint::from_bytes(bytes, "embedded").unwrap();
        assert_eq!(checkpoint.format(), Format::Safetensors);
        let x = checkpoint.tensor("x", &Device::Cpu).unwrap().to_vec1::<i16>().unwrap();
        assert_eq!(x, [1, -1]);
        let last = checkpoint.rows("x", 1, 1, &Device::Cpu).unwrap().to_vec1::<i16>().unwrap();
        assert_eq!(last, [-1]);
        for (first, count) in [(1, 2), (3, 0), (usize::MAX, 2)] {
            assert!(checkpoint.rows("x", first, count, &Device::Cpu).is_err(), "{first}, {count}");
        }
        let missing = checkpoint.tensor("y", &Device::Cpu).unwrap_err();
        assert_eq!(missing.to_string(), "embedded: `y`: no tensor of this name");
    }
}
