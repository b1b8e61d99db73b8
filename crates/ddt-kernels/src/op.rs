//! The bridge between fused operations and candle: checks, slices, forward and backward passes.
//!
//! An operation implements [`FusedOp`] on slices and calls [`apply`]; candle's custom operations, their storages and
//! layouts appear only here.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "candle-cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor,
    WithDType, bail,
};
use half::{bf16, f16};

use crate::anywhere::{Anywhere, plain_result};
pub(crate) use crate::arguments::{check_alike, check_frozen, check_shape, dims_bld, with_last};
use crate::cpu::element::Element;

/// A differentiable operation of `N` tensors with elements `T`.
pub(crate) trait FusedOp<T, const N: usize>: Anywhere<N> + Send + Sync + 'static {
    /// The operation's and its inputs' names, for messages.
    const NAME: &'static str;
    const INPUTS: [&'static str; N];

    /// The elements of the result.
    fn forward(&self, inputs: [&[T]; N]) -> Vec<T>;

    /// The gradients of the inputs, from that of the result. Those that are not `wanted` are ignored.
    fn backward(&self, inputs: [&[T]; N], grad: &[T], wanted: [bool; N]) -> [Gradient<T>; N];
}

/// A differentiable operation of `N` tensors with elements `T` and of `W` weights, which are f32 whatever `T` is, as
/// are their gradients: weights are rounded where a GEMM reads them, and no update is lost to rounding.
pub(crate) trait WeightedOp<T, const N: usize, const W: usize>: Send + Sync + 'static {
    /// The operation's, its inputs' and its weights' names, for messages.
    const NAME: &'static str;
    const INPUTS: [&'static str; N];
    const WEIGHTS: [&'static str; W];

    /// The elements of the result.
    fn forward(&self, inputs: [&[T]; N], weights: [&[f32]; W]) -> Vec<T>;

    /// The gradients of inputs and weights, from that of the result. Those that are not `wanted` are ignored.
    fn backward(
        &self,
        inputs: [&[T]; N],
        weights: [&[f32]; W],
        grad: &[T],
        wanted: [bool; N],
    ) -> ([Gradient<T>; N], [Vec<f32>; W]);

    /// Input `i` with its elements where the operation reads them.
    fn placed(&self, _i: usize, input: &Tensor) -> Result<Tensor> {
        input.contiguous()
    }

    /// The result by a GPU's kernels.
    #[cfg(feature = "candle-cuda")]
    fn on_gpu(&self, _: [(&CudaStorage, &Layout); N], _: &Shape) -> Result<CudaStorage> {
        bail!("{}: expected tensors on the CPU, got CUDA tensors", Self::NAME)
    }
}

impl<O: FusedOp<T, N>, T, const N: usize> WeightedOp<T, N, 0> for O {
    const NAME: &'static str = O::NAME;
    const INPUTS: [&'static str; N] = O::INPUTS;
    const WEIGHTS: [&'static str; 0] = [];

    fn forward(&self, inputs: [&[T]; N], _: [&[f32]; 0]) -> Vec<T> {
        FusedOp::forward(self, inputs)
    }

    fn backward(
        &self,
        inputs: [&[T]; N],
        _: [&[f32]; 0],
        grad: &[T],
        wanted: [bool; N],
    ) -> ([Gradient<T>; N], [Vec<f32>; 0]) {
        (FusedOp::backward(self, inputs, grad, wanted), [])
    }

    #[cfg(feature = "candle-cuda")]
    fn placed(&self, i: usize, input: &Tensor) -> Result<Tensor> {
        if input.device().is_cpu() {
            return input.contiguous();
        }
        crate::gpu::placed(input, O::SPACED == Some(i))
    }

    #[cfg(feature = "candle-cuda")]
    fn on_gpu(&self, inputs: [(&CudaStorage, &Layout); N], shape: &Shape) -> Result<CudaStorage> {
        crate::anywhere::kernel_result(self, inputs, shape)
    }
}

/// The gradient of one input.
pub(crate) enum Gradient<T> {
    /// Its elements.
    Of(Vec<T>),
    /// That of the result.
    Same,
    /// Not computed, because it is not wanted.
    Unwanted,
}

/// Applies an operation that is written for every float type: on the CPU, by kernels where it has some for the device
/// and the tensors, otherwise by candle's operations.
pub(crate) fn apply<O, const N: usize>(op: O, shape: impl Into<Shape>, inputs: [&Tensor; N]) -> Result<Tensor>
where
    O: FusedOp<f32, N> + FusedOp<bf16, N> + FusedOp<f16, N>,
{
    let shape = shape.into();
    if !inputs[0].device().is_cpu() {
        let named: Vec<_> = <O as FusedOp<f32, N>>::INPUTS.into_iter().zip(inputs).collect();
        check_alike(<O as FusedOp<f32, N>>::NAME, &named)?;
    }
    if let Some(result) = plain_result(&op, &shape, inputs)? {
        return Ok(result);
    }
    match inputs[0].dtype() {
        DType::BF16 => Bridge::<O, bf16, N, 0>::apply(op, shape, inputs, []),
        DType::F16 => Bridge::<O, f16, N, 0>::apply(op, shape, inputs, []),
        _ => Bridge::<O, f32, N, 0>::apply(op, shape, inputs, []),
    }
}

/// Applies an operation with weights, of tensors on the CPU.
pub(crate) fn apply_weighted<T, O, const N: usize, const W: usize>(
    op: O,
    shape: impl Into<Shape>,
    inputs: [&Tensor; N],
    weights: [&Tensor; W],
) -> Result<Tensor>
where
    T: Element,
    O: WeightedOp<T, N, W>,
{
    let (dtype, device) = (inputs[0].dtype(), inputs[0].device());
    if dtype != T::DTYPE || !device.is_cpu() {
        let (name, input) = (O::NAME, O::INPUTS[0]);
        let want = T::DTYPE.as_str();
        bail!("{name}: expected {input} in {want} on the CPU, got {dtype:?} on {:?}", device.location());
    }
    Bridge::<O, T, N, W>::apply(op, shape.into(), inputs, weights)
}

/// An operation of one tensor that has no gradient: one of frozen networks.
pub(crate) trait FrozenOp {
    /// The operation's name, for messages.
    const NAME: &'static str;

    /// The elements of the result.
    fn forward<T: Element, O: Element>(&self, xs: &[T]) -> Vec<O>;
}

/// Applies an operation without a gradient, with a result in `dtype`: that of `xs`, or bf16 where `xs` is f32.
///
/// Fails if `xs` depends on a variable, whose gradient would be lost.
pub(crate) fn apply_frozen<F: FrozenOp>(
    op: &F,
    dtype: DType,
    shape: impl Into<Shape>,
    xs: &Tensor,
) -> Result<Tensor> {
    fn run<F: FrozenOp, T: Element, O: Element>(op: &F, shape: Shape, xs: &Tensor) -> Result<Tensor> {
        Tensor::from_vec(with_slices([xs], |[xs]| op.forward::<T, O>(xs))?, shape, &Device::Cpu)
    }
    check_frozen(F::NAME, &[("xs", xs)])?;
    let shape = shape.into();
    match (xs.dtype(), dtype) {
        (DType::F32, DType::F32) => run::<F, f32, f32>(op, shape, xs),
        (DType::F32, DType::BF16) => run::<F, f32, bf16>(op, shape, xs),
        (DType::BF16, DType::BF16) => run::<F, bf16, bf16>(op, shape, xs),
        (DType::F16, DType::F16) => run::<F, f16, f16>(op, shape, xs),
        (got, want) => bail!(
            "{}: expected xs and result both f32, bf16 or f16, or f32 and bf16, got {got:?} and {want:?}",
            F::NAME
        ),
    }
}

/// An operation as candle sees it.
///
/// candle's custom operations have at most three inputs. Weights are therefore passed beside them, and the operation
/// gets a *token* in their place: one element, made by [`Weights`]. candle differentiates the token after the
/// operation, and `Weights` then hands out the gradients that the operation left for it.
struct Bridge<O, T, const N: usize, const W: usize> {
    op: O,
    shape: Shape,
    weights: Vec<Tensor>,
    weight_grads: WeightGradients,
    element: PhantomData<fn() -> T>,
}

/// The gradients of an operation's weights.
type WeightGradients = Arc<Mutex<Vec<Option<Tensor>>>>;

impl<O: WeightedOp<T, N, W>, T: Element, const N: usize, const W: usize> Bridge<O, T, N, W> {
    fn apply(op: O, shape: Shape, inputs: [&Tensor; N], weights: [&Tensor; W]) -> Result<Tensor> {
        let named: Vec<_> = O::INPUTS.into_iter().zip(inputs).collect();
        check_alike(O::NAME, &named)?;
        for (name, weight) in O::WEIGHTS.into_iter().zip(weights) {
            if weight.dtype() != DType::F32 || !weight.device().is_cpu() {
                let (op, dtype, at) = (O::NAME, weight.dtype(), weight.device().location());
                bail!("{op}: expected {name} in f32 on the CPU, got {dtype:?} on {at:?}");
            }
        }
        let placed = |(i, it): (usize, &&Tensor)| op.placed(i, it);
        let inputs = inputs.iter().enumerate().map(placed).collect::<Result<Vec<_>>>()?;
        let weights = weights.iter().map(|it| it.contiguous()).collect::<Result<Vec<_>>>()?;
        let weight_grads = WeightGradients::default();
        let token = (W > 0).then(|| Weights::token(&weights, &weight_grads)).transpose()?;
        let bridge = Self { op, shape, weights, weight_grads, element: PhantomData };
        match (&inputs[..], &token) {
            ([a], None) => a.apply_op1(bridge),
            ([a], Some(token)) => a.apply_op2(token, bridge),
            ([a, b], None) => a.apply_op2(b, bridge),
            ([a, b], Some(token)) => a.apply_op3(b, token, bridge),
            ([a, b, c], None) => a.apply_op3(b, c, bridge),
            _ => bail!("{}: expected fewer inputs, got {N} and {W} weights", O::NAME),
        }
    }

    #[cfg(feature = "candle-cuda")]
    fn forward_on_gpu(&self, direct: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let inputs = array(direct.iter().copied().take(N).collect())?;
        Ok((self.op.on_gpu(inputs, &self.shape)?, self.shape.clone()))
    }

    fn forward(&self, direct: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let inputs = direct.iter().take(N).map(|(storage, layout)| slice(storage, layout));
        let inputs = array(inputs.collect::<Result<Vec<_>>>()?)?;
        let out = with_slices(self.weights()?, |weights| self.op.forward(inputs, weights))?;
        Ok((T::to_cpu_storage_owned(out), self.shape.clone()))
    }

    fn weights(&self) -> Result<[&Tensor; W]> {
        array(self.weights.iter().collect())
    }

    /// The gradients of candle's inputs: `direct`, the last of which is the token if there are weights.
    fn backward(&self, direct: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let inputs: [&Tensor; N] = array(direct.iter().copied().take(N).collect())?;
        let wanted = inputs.map(|it| it.track_op());
        let (grads, weight_grads) = with_slices([grad], |[grad]| {
            with_slices(inputs, |inputs| {
                with_slices(self.weights()?, |weights| self.op.backward(inputs, weights, grad, wanted))
            })
        })???;
        let tensor = |(it, input): (Gradient<T>, &Tensor)| match it {
            _ if !input.track_op() => Ok(None),
            Gradient::Of(values) => Tensor::from_vec(values, input.shape(), input.device()).map(Some),
            Gradient::Same => Ok(Some(grad.clone())),
            Gradient::Unwanted => Ok(None),
        };
        let mut grads = grads.into_iter().zip(inputs).map(tensor).collect::<Result<Vec<_>>>()?;
        if let Some(token) = direct.get(N) {
            let tensor = |(it, weight): (Vec<f32>, &Tensor)| {
                let tensor = || Tensor::from_vec(it, weight.shape(), weight.device());
                weight.track_op().then(tensor).transpose()
            };
            let weight_grads = weight_grads.into_iter().zip(&self.weights).map(tensor);
            let weight_grads = weight_grads.collect::<Result<Vec<_>>>()?;
            *self.weight_grads.lock().unwrap_or_else(PoisonError::into_inner) = weight_grads;
            grads.push(Some(token.zeros_like()?));
        }
        Ok(grads)
    }
}

impl<O, T, const N: usize, const W: usize> CustomOp1 for Bridge<O, T, N, W>
where
    O: WeightedOp<T, N, W>,
    T: Element,
{
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, a_layout)])
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, a: &CudaStorage, a_layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward_on_gpu(&[(a, a_layout)])
    }

    fn bwd(&self, a: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = array(self.backward(&[a], grad)?)?;
        Ok(a)
    }
}

impl<O, T, const N: usize, const W: usize> CustomOp2 for Bridge<O, T, N, W>
where
    O: WeightedOp<T, N, W>,
    T: Element,
{
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, a_layout), (b, b_layout)])
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward_on_gpu(&[(a, a_layout), (b, b_layout)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = array(self.backward(&[a, b], grad)?)?;
        Ok((a, b))
    }
}

impl<O, T, const N: usize, const W: usize> CustomOp3 for Bridge<O, T, N, W>
where
    O: WeightedOp<T, N, W>,
    T: Element,
{
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, a_layout), (b, b_layout), (c, c_layout)])
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
        c: &CudaStorage,
        c_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward_on_gpu(&[(a, a_layout), (b, b_layout), (c, c_layout)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = array(self.backward(&[a, b, c], grad)?)?;
        Ok((a, b, c))
    }
}

/// One element that depends on two of an operation's weights, and on the token of those before.
struct Weights {
    grads: WeightGradients,
    /// The first of the two.
    first: usize,
}

impl Weights {
    /// A token that depends on all of `weights`.
    fn token(weights: &[Tensor], grads: &WeightGradients) -> Result<Tensor> {
        let mut token = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        for (pair, weights) in weights.chunks(2).enumerate() {
            let op = Self { grads: grads.clone(), first: 2 * pair };
            token = match weights {
                [a, b] => a.apply_op3(b, &token, op)?,
                [a] => a.apply_op2(&token, op)?,
                _ => token,
            };
        }
        Ok(token)
    }

    fn take(&self, offset: usize) -> Option<Tensor> {
        let mut grads = self.grads.lock().unwrap_or_else(PoisonError::into_inner);
        grads.get_mut(self.first + offset).and_then(Option::take)
    }

    fn value() -> (CpuStorage, Shape) {
        (CpuStorage::F32(vec![0.0]), Shape::from(1))
    }
}

impl CustomOp2 for Weights {
    fn name(&self) -> &'static str {
        "weights"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(Self::value())
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _token: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.take(0), Some(grad.clone())))
    }
}

impl CustomOp3 for Weights {
    fn name(&self) -> &'static str {
        "weights"
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
        Ok(Self::value())
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _b: &Tensor,
        _token: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // The token has no value; its gradient only leads candle to the token before.
        Ok((self.take(0), self.take(1), Some(grad.clone())))
    }
}

/// The elements of a contiguous CPU storage.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let elements = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets().and_then(|(start, end)| elements.get(start..end)) {
        Some(elements) => Ok(elements),
        None => bail!("expected a contiguous tensor, got layout {layout:?}"),
    }
}

/// The elements of a contiguous tensor on the CPU.
fn tensor_slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => slice(storage, layout),
        other => bail!("expected a CPU tensor, got one on {:?}", other.device()),
    }
}

/// Calls `f` with the elements of tensors on the CPU; copies those that are not contiguous.
pub(crate) fn with_slices<T: WithDType, R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let tensors = tensors.iter().map(|it| it.contiguous()).collect::<Result<Vec<_>>>()?;
    let storages: Vec<_> = tensors.iter().map(|it| it.storage_and_layout()).collect();
    let slices = storages.iter().map(|(storage, layout)| tensor_slice(storage, layout));
    Ok(f(array(slices.collect::<Result<Vec<_>>>()?)?))
}

fn array<I, const N: usize>(items: Vec<I>) -> Result<[I; N]> {
    let len = items.len();
    items.try_into().map_err(|_| candle_core::Error::Msg(format!("expected {N} inputs, got {len}")))
}
