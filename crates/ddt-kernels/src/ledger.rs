//! Gradients of more weights than a custom operation has arguments.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};

/// Where an operation leaves the gradients of weights that are not its arguments.
///
/// candle's custom operations take three tensors. An operation with more weights takes a *token* instead, one
/// element that depends on all of them ([`Ledger::token`]): candle differentiates the token after the
/// operation, and that step collects from the ledger what the operation left there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    slots: Arc<Mutex<Vec<Option<Vec<f32>>>>>,
}

impl Ledger {
    /// A token for pairs of `weights`, which are f32, contiguous and on the CPU; gradients are left in this
    /// order.
    pub(crate) fn token(&self, weights: &[[Tensor; 2]]) -> Result<Tensor> {
        let token = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        weights.iter().enumerate().try_fold(token, |token, (pair, [first, second])| {
            first.apply_op3(second, &token, Collect { ledger: self.clone(), pair })
        })
    }

    /// Leaves the gradients of all weights.
    pub(crate) fn leave(&self, gradients: impl IntoIterator<Item = Vec<f32>>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        *slots = gradients.into_iter().map(Some).collect();
    }

    fn collect(&self, slot: usize, weight: &Tensor) -> Result<Tensor> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get_mut(slot).and_then(Option::take) {
            Some(gradient) => Tensor::from_vec(gradient, weight.shape(), weight.device()),
            None => bail!("expected a gradient for weight {slot} of a fused operation, got none"),
        }
    }
}

/// One element that depends on two weights and on an earlier token.
struct Collect {
    ledger: Ledger,
    pair: usize,
}

impl CustomOp3 for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        _token: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad_first = self.ledger.collect(2 * self.pair, first)?;
        let grad_second = self.ledger.collect(2 * self.pair + 1, second)?;
        // The token is worth nothing; its gradient only keeps candle going to the earlier one.
        Ok((Some(grad_first), Some(grad_second), Some(grad.clone())))
    }
}
