//! An opened checkpoint of either format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::safetensors_file::SafetensorsFile;
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
    /// A zip archive of a pickle and raw numbers, as `torch.save` writes since PyTorch 1.6.
    TorchZip,
    /// Pickles followed by raw numbers, as `torch.save` wrote before.
    TorchLegacy,
}

/// An opened checkpoint: its names, types and shapes; tensors are read when asked for.
///
/// The names of a PyTorch file are the keys of its `state_dict` (Lightning), or else of its dictionaries,
/// joined by dots: `{"model": {"w": ..}, "ema": {"w": ..}}` has `model.w` and `ema.w`. What lies beside
/// dictionaries of tensors is left out, whatever it is.
///
/// Threads may share it; the file is not mapped into memory, so it may not be changed, but it may be removed.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    format: Format,
    content: Content,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Content {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl Checkpoint {
    /// Opens a file and reads its table of contents.
    ///
    /// # Errors
    ///
    /// [`FileError::Format`] for other formats and damaged files, [`FileError::Tensor`] for what is no tensor
    /// (code, for instance) among the tensors, [`FileError::Limit`], [`FileError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Self::from_source(Source::open(path.as_ref())?)
    }

    /// Opens bytes in memory; `name` stands for the path in messages.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self, FileError> {
        Self::from_source(Source::from_bytes(bytes.into(), name))
    }

    fn from_source(source: Source) -> Result<Self, FileError> {
        let mut metadata = BTreeMap::new();
        let format = detect(&source)?;
        let content = match format {
            Format::Safetensors => {
                let mut file = SafetensorsFile::open(&source)?;
                metadata = std::mem::take(&mut file.metadata);
                Content::Safetensors(file)
            }
            Format::TorchZip => Content::Torch(TorchFile::open_zip(&source)?),
            Format::TorchLegacy => Content::Torch(TorchFile::open_legacy(&source)?),
        };
        Ok(Self { source, format, content, metadata })
    }

    /// The container's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file, or the name given to the bytes.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The text entries of a safetensors file; empty for a PyTorch file.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        match &self.content {
            Content::Safetensors(file) => file.tensors.keys().map(String::as_str).collect(),
            Content::Torch(file) => file.tensors.keys().map(String::as_str).collect(),
        }
    }

    /// Type and shape of a tensor, or `None` if there is no such name. Reads nothing.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        match &self.content {
            Content::Safetensors(file) => file.tensors.get(name).map(|it| it.info.clone()),
            Content::Torch(file) => file.tensors.get(name).map(|it| it.info.clone()),
        }
    }

    /// Reads one tensor, in its stored type, and nothing else of the file.
    ///
    /// # Errors
    ///
    /// [`FileError::Tensor`] for an unknown name; a reading error if the file has changed or is
    /// damaged.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError> {
        let tensor = match &self.content {
            Content::Safetensors(file) => file.tensor(&self.source, name, device)?,
            Content::Torch(file) => file.tensor(&self.source, name, device)?,
        };
        tensor.ok_or_else(|| FileError::not_found(self.path(), name))
    }

    /// Reads `count` rows of a tensor from `first` on, rows being counted along its first axis, and
    /// nothing else of the file. Safetensors files only.
    ///
    /// # Errors
    ///
    /// [`FileError::Tensor`] for an unknown name, and any name of a PyTorch file;
    /// [`FileError::Tensor`] when there are no such rows; a reading error as
    /// [`tensor`](Self::tensor).
    pub fn rows(&self, name: &str, first: usize, count: usize, device: &Device) -> Result<Tensor, FileError> {
        let rows = match &self.content {
            Content::Safetensors(file) => file.rows(&self.source, name, first, count, device)?,
            Content::Torch(_) => None,
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
    Err(FileError::format(source.path(), problem))
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
            (b"\x80\x02}.".to_vec(), "bare pickle"),
            (tar, "tar archive"),
        ] {
            let error = Checkpoint::from_bytes(bytes, "test").unwrap_err();
            assert!(
                matches!(error, FileError::Format { .. }) && error.to_string().contains(expected),
                "{error}"
            );
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
