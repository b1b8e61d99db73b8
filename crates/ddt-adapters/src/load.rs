//! Named tensors into a network: complete, or one error that names everything wrong.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use ddt_files::{Comparison, FileError, TensorSource};

/// Why a network could not be made from a file's tensors.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read, or its names and shapes are not the network's.
    #[error(transparent)]
    Checkpoint(#[from] FileError),
    /// The kind of network could not be told from the names.
    #[error("expected the weights of a {network}, with a tensor {expected}, got {got}")]
    Unrecognised {
        /// Which network was asked for.
        network: &'static str,
        /// The tensor that tells.
        expected: &'static str,
        /// The value found instead.
        got: String,
    },
    /// A configuration that makes no sense, or a failure of the device.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl LoadError {
    /// [`Unrecognised`](Self::Unrecognised), with the first names of `source`.
    pub(crate) fn unrecognised(
        network: &'static str,
        expected: &'static str,
        source: &(impl TensorSource + ?Sized),
    ) -> Self {
        let names = source.names();
        let first = names.get(..3).unwrap_or(&names).join(", ");
        let got = format!("{} tensors in {} ({first}, ..)", names.len(), source.path().display());
        Self::Unrecognised { network, expected, got }
    }
}

/// Builds a network in `dtype` from exactly the tensors whose names `wanted` accepts: all or error.
///
/// The network names its tensors itself, by asking `vb` for them.
/// A 1x1 convolution `(out, in, 1, 1)` is also accepted as a matrix `(out, in)`, and the reverse.
///
/// # Errors
/// [`FileError::Mismatch`] with every missing, unexpected and misshapen name; else what reading a tensor or
/// `make` returned.
pub fn load_network<T, S: TensorSource + Sync + ?Sized>(
    source: &S,
    dtype: DType,
    device: &Device,
    wanted: impl Fn(&str) -> bool,
    make: impl FnOnce(VarBuilder) -> candle_core::Result<T>,
) -> Result<T, LoadError> {
    let record = Mutex::new(Record::default());
    let backend = Recording { source, record: &record };
    let made = make(VarBuilder::from_backend(Box::new(backend), dtype, device.clone()));
    let Record { comparison, failure } = record.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failure {
        return Err(error.into());
    }
    // A network that could not be made has not asked for everything yet.
    let whole = made.is_ok();
    comparison.finish(source, |name| !whole || !wanted(name))?;
    Ok(made?)
}

/// Requests of a network under construction.
#[derive(Default)]
struct Record {
    comparison: Comparison,
    failure: Option<FileError>,
}

/// Answers a network under construction, with zeros where the source has no answer, so that
/// construction continues and every name is seen.
struct Recording<'a, S: ?Sized> {
    source: &'a S,
    record: &'a Mutex<Record>,
}

impl<S: TensorSource + Sync + ?Sized> SimpleBackend for Recording<'_, S> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if record.comparison.ask(self.source, name, shape.dims(), same_matrix) {
            match self.source.tensor(name, &Device::Cpu) {
                Ok(tensor) => return tensor.to_dtype(dtype)?.to_device(device)?.reshape(shape),
                Err(error) => record.failure = record.failure.take().or(Some(error)),
            }
        }
        Tensor::zeros(1, dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.source.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap)?;
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.info(name).is_some()
    }
}

/// Refuses a size of a configuration, given with its name, that no network has.
///
/// # Errors
/// Zero, and more than 65536.
pub(crate) fn check_sizes<'a>(sizes: impl IntoIterator<Item = (&'a str, usize)>) -> candle_core::Result<()> {
    match sizes.into_iter().find(|it| !(1..=65536).contains(&it.1)) {
        Some((name, size)) => candle_core::bail!("{name}: expected 1 to 65536, got {size}"),
        None => Ok(()),
    }
}

/// Equal, or one is the other with the two sides of a 1x1 kernel appended.
fn same_matrix(a: &[usize], b: &[usize]) -> bool {
    let matrix = |dims: &[usize]| match *dims {
        [out, inp, 1, 1] | [out, inp] => Some([out, inp]),
        _ => None,
    };
    a == b || matrix(a).zip(matrix(b)).is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use ddt_files::Misshapen;

    use super::*;
    use crate::testing::{InMemory, random};

    fn source(names: &[(&str, &[usize])]) -> InMemory {
        InMemory(names.iter().map(|(name, shape)| (name.to_string(), random(1, shape.to_vec()))).collect())
    }

    #[test]
    fn every_wrong_name_is_in_one_error() {
        let source = source(&[("a", &[2]), ("b", &[3]), ("x", &[1]), ("other.y", &[1])]);
        let make = |vb: VarBuilder| Ok((vb.get(2, "d")?, vb.get(2, "a")?, vb.get(2, "b")?, vb.get(2, "c")?));
        match load_network(&source, DType::F32, &Device::Cpu, |name| !name.starts_with("other."), make) {
            Err(LoadError::Checkpoint(FileError::Mismatch { missing, unexpected, misshapen, .. })) => {
                assert_eq!(missing, ["c", "d"]);
                assert_eq!(unexpected, ["x"]);
                let b = Misshapen { name: "b".to_string(), expected: vec![2], got: vec![3] };
                assert_eq!(misshapen, [b]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_matrix_and_a_point_convolution_are_the_same() {
        let source = source(&[("a", &[2, 3, 1, 1]), ("b", &[2, 3])]);
        let make = |vb: VarBuilder| Ok((vb.get((2, 3), "a")?, vb.get((2, 3, 1, 1), "b")?));
        let (a, b) = load_network(&source, DType::F32, &Device::Cpu, |_| true, make).unwrap();
        assert_eq!((a.dims(), b.dims()), (&[2, 3][..], &[2, 3, 1, 1][..]));
        assert!(!same_matrix(&[2, 3], &[3, 2, 1, 1]) && !same_matrix(&[2, 1, 1], &[2]));
    }
}
