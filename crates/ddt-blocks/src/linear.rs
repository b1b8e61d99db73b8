//! A linear layer whose initialiser is always named.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::init;

/// `y = x W^T + b`, with `W` of shape `(out, in)`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Parameters `weight` and `bias`, initialised as PyTorch's `nn.Linear`.
    pub fn new(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        let bound = init::pytorch_linear(in_size);
        Self::with_init(in_size, out_size, bound, Some(bound), vb)
    }

    /// Parameter `weight` alone, initialised as PyTorch's `nn.Linear`.
    pub fn no_bias(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(in_size, out_size, init::pytorch_linear(in_size), None, vb)
    }

    /// Parameters with the initialisers given; no bias where its initialiser is `None`.
    pub fn with_init(
        in_size: usize,
        out_size: usize,
        weight: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get_with_hints((out_size, in_size), "weight", weight)?;
        let bias = bias.map(|it| vb.get_with_hints(out_size, "bias", it)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The layer's weight, `(out, in)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The layer's bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// # Shapes
    /// `xs: (.., in) -> (.., out)`, in the weight's dtype.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        affine(xs, &self.weight, self.bias.as_ref())
    }

    /// The outputs `start..start + len` alone, as if the layer had only those rows.
    pub fn forward_outputs(&self, xs: &Tensor, start: usize, len: usize) -> Result<Tensor> {
        self.outputs(start, len)?.forward(xs)
    }

    /// The layer of these outputs alone; the weights are shared.
    pub(crate) fn outputs(&self, start: usize, len: usize) -> Result<Self> {
        let bias = self.bias.as_ref().map(|it| it.narrow(0, start, len)).transpose()?;
        Ok(Self { weight: self.weight.narrow(0, start, len)?, bias })
    }
}

/// One flat product whatever the number of leading axes: a broadcast product is much slower.
pub(crate) fn affine(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let dims = xs.dims();
    let Some((&last, leading)) = dims.split_last() else {
        bail!("expected (.., {in_size}), got a scalar");
    };
    if last != in_size {
        bail!("expected (.., {in_size}), got {dims:?}");
    }
    if xs.dtype() == DType::F32 && xs.device().is_cpu() {
        return ddt_kernels::linear(xs, weight, bias);
    }
    let rows: usize = leading.iter().product();
    let mut ys = xs.reshape((rows, in_size))?.matmul(&weight.t()?)?; // (rows, out)
    if let Some(bias) = bias {
        ys = ys.broadcast_add(bias)?;
    }
    let shape: Vec<usize> = leading.iter().copied().chain([out_size]).collect();
    ys.reshape(shape)
}
