//! A linear layer.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use crate::check::check_alike;
use crate::cpu::linear::{Sizes, backward_bias, backward_weight, backward_x, forward};
use crate::cpu::storage::{self, with_slices};

const NAME: &str = "linear";

/// A linear layer.
///
/// ```text
/// y = x weight^T + bias
/// ```
///
/// Differentiable in all tensors; f32 on the CPU alone.
///
/// # Shapes
///
/// `x`: (.., K), `weight`: (N, K), `bias`: (N); result: (.., N).
///
/// # Errors
///
/// If a shape is another, or if a tensor is not f32 on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (sizes, shape) = sizes(x, weight)?;
    check_alike(NAME, &[("x", x), ("weight", weight)])?;
    if x.dtype() != DType::F32 || !x.device().is_cpu() {
        bail!("{NAME}: expected x in f32 on the CPU, got {:?} on {:?}", x.dtype(), x.device().location());
    }
    let op = Linear { sizes, shape };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let Some(bias) = bias else { return x.apply_op2(&weight, op) };
    check_alike(NAME, &[("x", &x), ("bias", bias)])?;
    if bias.dims() != [sizes.outputs] {
        bail!("{NAME}: expected bias of shape ({}), got {:?}", sizes.outputs, bias.shape());
    }
    x.apply_op3(&weight, &bias.contiguous()?, op)
}

/// Sizes, and the shape of the result.
fn sizes(x: &Tensor, weight: &Tensor) -> Result<(Sizes, Shape)> {
    let Ok((outputs, inputs)) = weight.dims2() else {
        bail!("{NAME}: expected weight of shape (N, K), got {:?}", weight.shape());
    };
    match x.dims().split_last() {
        Some((&last, leading)) if last == inputs => {
            let shape: Vec<usize> = leading.iter().copied().chain([outputs]).collect();
            Ok((Sizes { rows: leading.iter().product(), inputs, outputs }, Shape::from(shape)))
        }
        _ => bail!("{NAME}: expected x of shape (.., {inputs}), got {:?}", x.shape()),
    }
}

struct Linear {
    sizes: Sizes,
    shape: Shape,
}

impl Linear {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let x = storage::slice(x, x_layout)?;
        let weight = storage::slice(weight, weight_layout)?;
        let bias = bias.map(|(bias, layout)| storage::slice(bias, layout)).transpose()?;
        Ok((storage::from_vec(forward(self.sizes, x, weight, bias)), self.shape.clone()))
    }

    /// Gradients of `x`, where anything depends on it, and of `weight`.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
        let tracked = x.track_op();
        let (grad_x, grad_weight) = with_slices!(f32; x, weight, grad => (
            tracked.then(|| backward_x(self.sizes, weight, grad)),
            backward_weight(self.sizes, x, grad),
        ));
        let grad_x = grad_x.map(|it| Tensor::from_vec(it, x.shape(), x.device())).transpose()?;
        Ok((grad_x, Tensor::from_vec(grad_weight, weight.shape(), x.device())?))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_weight) = self.backward(x, weight, &grad.contiguous()?)?;
        Ok((grad_x, Some(grad_weight)))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grad_x, grad_weight) = self.backward(x, weight, &grad)?;
        let grad_bias = with_slices!(f32; grad => backward_bias(self.sizes, grad));
        let grad_bias = Tensor::from_vec(grad_bias, bias.shape(), x.device())?;
        Ok((grad_x, Some(grad_weight), Some(grad_bias)))
    }
}
