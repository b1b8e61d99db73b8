//! All-or-error loading: the tensors a network expects, or one message about everything that does not fit.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::{CheckpointError, Misshapen, TensorSource};

/// How [`load_exact`] treats what it finds.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    device: &'a Device,
    dtype: Option<DType>,
    allow_extra: Option<&'a dyn Fn(&str) -> bool>,
}

impl<'a> LoadOptions<'a> {
    /// Tensors go to `device` in their stored types, and every unexpected name is an error.
    pub fn new(device: &'a Device) -> Self {
        Self { device, dtype: None, allow_extra: None }
    }

    /// Converts every tensor to `dtype`, as [`Tensor::to_dtype`] does.
    pub fn cast(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Passes over unexpected names for which `allowed` is true.
    pub fn allow_extra(self, allowed: &'a dyn Fn(&str) -> bool) -> Self {
        Self { allow_extra: Some(allowed), ..self }
    }
}

/// Reads exactly the `expected` names and shapes from `source`.
///
/// All names and shapes are compared before the first tensor is read, so memory is bounded by what is
/// expected, not by what the file claims. Conversion happens on the CPU, one tensor at a time.
///
/// # Errors
///
/// [`CheckpointError::Mismatch`] with every missing, unexpected and misshapen name; else what reading or
/// converting a tensor returned.
pub fn load_exact<S: TensorSource + ?Sized>(
    source: &S,
    expected: &[(String, Vec<usize>)],
    options: &LoadOptions<'_>,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    compare(source, expected, options)?;
    let mut tensors = BTreeMap::new();
    for (name, _) in expected {
        let tensor = source.tensor(name, &Device::Cpu)?;
        let converted = tensor
            .to_dtype(options.dtype.unwrap_or(tensor.dtype()))
            .and_then(|it| it.to_device(options.device))
            .map_err(|error| CheckpointError::Tensor {
                path: source.path().to_path_buf(),
                name: name.clone(),
                source: Box::new(error),
            })?;
        tensors.insert(name.clone(), converted);
    }
    Ok(tensors)
}

fn compare<S: TensorSource + ?Sized>(
    source: &S,
    expected: &[(String, Vec<usize>)],
    options: &LoadOptions<'_>,
) -> Result<(), CheckpointError> {
    let wanted: BTreeMap<&str, &[usize]> =
        expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (&name, &shape) in &wanted {
        match source.info(name) {
            None => missing.push(name.to_string()),
            Some(info) if info.shape != shape => misshapen.push(Misshapen {
                name: name.to_string(),
                expected: shape.to_vec(),
                got: info.shape,
            }),
            Some(_) => {}
        }
    }
    let allowed = |name: &str| options.allow_extra.is_some_and(|allowed| allowed(name));
    let unexpected: Vec<String> = source
        .names()
        .into_iter()
        .filter(|name| !wanted.contains_key(name) && !allowed(name))
        .map(str::to_string)
        .collect();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return Ok(());
    }
    Err(CheckpointError::Mismatch { path: source.path().to_path_buf(), missing, unexpected, misshapen })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;

    fn checkpoint() -> Checkpoint {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"U8","shape":[],"data_offsets":[8,9]},"z":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend([0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 7, 8]);
        Checkpoint::from_bytes(bytes, "test").unwrap()
    }

    fn expected(list: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn loads_and_converts() {
        let expected = expected(&[("b", &[]), ("a", &[2])]);
        let options = LoadOptions::new(&Device::Cpu).allow_extra(&|name| name == "z");
        let stored = load_exact(&checkpoint(), &expected, &options).unwrap();
        assert_eq!(stored.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(stored["b"].dtype(), DType::U8);
        let cast = load_exact(&checkpoint(), &expected, &options.cast(DType::F64)).unwrap();
        assert_eq!(cast["a"].to_vec1::<f64>().unwrap(), [1.0, -2.0]);
        assert_eq!(cast["b"].to_scalar::<f64>().unwrap(), 7.0);
    }

    #[test]
    fn one_error_lists_everything() {
        let expected = expected(&[("y", &[1]), ("a", &[3]), ("c", &[1])]);
        let error = load_exact(&checkpoint(), &expected, &LoadOptions::new(&Device::Cpu)).unwrap_err();
        let CheckpointError::Mismatch { missing, unexpected, misshapen, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(missing, ["c", "y"]);
        assert_eq!(unexpected, ["b", "z"]);
        assert_eq!(misshapen, [Misshapen { name: "a".to_string(), expected: vec![3], got: vec![2] }]);
    }
}
