//! The one interface that loaders know: named tensors of known type and shape.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::FileError;

/// What a file says about a tensor before it is read.
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
    ///
    /// [`FileError::Tensor`] for an unknown name; a reading error if the file has changed or is
    /// damaged.
    fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, FileError>;
}
