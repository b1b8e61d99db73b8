//! A fixture file: inputs, weights, outputs, and metadata that describes them.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use ddt_files::Checkpoint;
use serde::de::DeserializeOwned;

use crate::compare::{Comparison, Tolerance};

/// An opened fixture.
#[derive(Debug)]
pub struct Fixture {
    checkpoint: Checkpoint,
    dtype: DType,
    device: Device,
}

impl Fixture {
    /// Opens a file; its networks compute in f32 on the CPU.
    ///
    /// # Errors
    /// A file that is no checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(path)?, dtype: DType::F32, device: Device::Cpu })
    }

    /// The same fixture with its network's weights in another dtype.
    pub fn in_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The same fixture with its tensors on a device, where its network computes.
    pub fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// Where the tensors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the network is built in the form that samples on the CPU.
    pub(crate) fn freezes(&self) -> bool {
        self.device.is_cpu() && matches!(self.dtype, DType::F32 | DType::BF16)
    }

    /// Dtype of the network's weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The file's tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Another file of the fixture, named by its metadata, in the same folder.
    ///
    /// # Errors
    /// Metadata that lacks the key.
    pub fn beside(&self, key: &str) -> Result<std::path::PathBuf> {
        Ok(self.path().with_file_name(self.text(key)?))
    }

    /// Metadata as plain text.
    ///
    /// # Errors
    /// Metadata that lacks the key.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.checkpoint.metadata().get(key);
        value.map(String::as_str).with_context(|| format!("expected metadata {key:?}, got none"))
    }

    /// Metadata as JSON.
    ///
    /// # Errors
    /// Metadata that lacks the key or has another form.
    pub fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.text(key)?).with_context(|| format!("metadata {key:?}"))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.info(name).is_some()
    }

    /// A tensor in the dtype it is stored in.
    ///
    /// # Errors
    /// No such tensor.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.checkpoint.tensor(name, &self.device)?)
    }

    /// Class labels as networks take them.
    ///
    /// # Errors
    /// No such tensor.
    pub fn labels(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensor(name)?.to_dtype(DType::U32)?)
    }

    /// Compares with the output of this name; the tolerance follows the weights' dtype.
    ///
    /// # Errors
    /// No such output, or another shape.
    pub fn compare(&self, name: &str, got: &Tensor, tolerance: Tolerance) -> Result<Comparison> {
        Comparison::tensors(name, got, &self.tensor(name)?, tolerance.in_dtype(self.dtype))
    }
}
