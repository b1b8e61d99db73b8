//! Gradients of all parameters, added up over the parts of a batch.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

use crate::{error::TrainError, objective::Loss, parameters::Parameters};

/// Mean loss and gradient of what was added so far, each part counted by its share of the batch.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub(crate) loss: f64,
    pub(crate) parts: Vec<(&'static str, f64)>,
    /// In f32, in the order of the parameters.
    pub(crate) gradients: Vec<Tensor>,
}

impl Gradients {
    /// Adds the gradient of `loss`, the mean over `share` of the batch.
    pub(crate) fn add(&mut self, parameters: &Parameters, loss: &Loss, share: f64) -> Result<(), TrainError> {
        let scalar =
            |it: &Tensor| Ok::<_, TrainError>(f64::from(it.to_dtype(DType::F32)?.to_scalar::<f32>()?));
        let mut store = loss.total.backward()?;
        self.loss += share * scalar(&loss.total)?;
        let first = self.gradients.is_empty();
        for (i, (name, part)) in loss.parts.iter().enumerate() {
            let part = share * scalar(part)?;
            if first {
                self.parts.push((name, part));
            } else if let Some(sum) = self.parts.get_mut(i) {
                sum.1 += part;
            }
        }
        for (i, (name, var)) in parameters.iter().enumerate() {
            let gradient =
                store.remove(var).ok_or_else(|| TrainError::NoGradient { name: name.to_owned() })?;
            let gradient = gradient.to_dtype(DType::F32)?;
            let gradient = if share == 1.0 { gradient } else { (gradient * share)? };
            if first {
                self.gradients.push(gradient.contiguous()?);
            } else {
                self.gradients[i] = (&self.gradients[i] + gradient)?;
            }
        }
        Ok(())
    }

    /// Euclidean norm, summed in f64, a parameter at a time, in their order.
    pub(crate) fn norm(&self) -> Result<f64, TrainError> {
        let square =
            |it: &Tensor| with_values(it, |values| values.iter().map(|x| f64::from(*x).powi(2)).sum());
        let squares: Vec<f64> = self.gradients.par_iter().map(square).collect::<Result<_, _>>()?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }
}

/// Calls `f` with the values of a contiguous f32 tensor, without a copy where they are in memory.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T, TrainError> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((begin, end))) =
        (&*storage, layout.contiguous_offsets())
    {
        return Ok(f(&values[begin..end]));
    }
    drop(storage);
    Ok(f(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?))
}
