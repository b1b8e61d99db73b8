//! Layers of the frozen networks, over images `(B, H, W, C)` and tokens `(B, L, D)`.
//!
//! On the CPU in f32 and bf16 each is a fused operation of [`ddt_kernels`], its weights packed at load; other
//! devices and types go through candle's operations, which are also what the tests compare with.
//!
//! On the CPU a network in bf16 multiplies in bf16. What it adds up stays in f32, the [stream](stream_dtype), as do
//! biases and the weights of norms. Norms round their results, which are multiplied next; convolutions and linear
//! layers do so where they are told to.

use candle_core::{D, DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::{
    Activation, GroupNormOptions, PackedConv2d, Window2d, group_norm, layer_norm, max_pool2d, mean_pool2d,
    softmax_attention,
};

/// The dtype between the layers of a network with the weights of `vb`.
pub(crate) fn stream_dtype(vb: &VarBuilder) -> DType {
    if vb.dtype() == DType::BF16 && vb.device().is_cpu() { DType::F32 } else { vb.dtype() }
}

/// The weights in the dtype of the [stream](stream_dtype): for biases, norms, and a network's first and last layers,
/// whose rounding would cost more accuracy than it saves time.
pub(crate) fn unrounded<'a>(vb: &VarBuilder<'a>) -> VarBuilder<'a> {
    vb.to_dtype(stream_dtype(vb))
}

/// `activation(conv(x) + bias + residual)`: `(B, H, W, C) -> (B, H', W', O)`, in the stream's dtype.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    kernel: Kernel,
    activation: Activation,
}

#[derive(Debug, Clone)]
enum Kernel {
    Packed(PackedConv2d),
    Plain(PlainConv2d),
}

impl Conv2d {
    /// Reads `weight: (O, C, rows, columns)` and `bias: (O)`.
    pub(crate) fn new(inputs: usize, outputs: usize, window: Window2d, vb: VarBuilder) -> Result<Self> {
        let (rows, columns) = window.kernel;
        let weight = vb.get((outputs, inputs, rows, columns), "weight")?;
        Self::of(&weight, Some(&unrounded(&vb).get(outputs, "bias")?), window)
    }

    /// Reads `weight: (O, C, rows, columns)`; there is no bias.
    pub(crate) fn no_bias(inputs: usize, outputs: usize, window: Window2d, vb: VarBuilder) -> Result<Self> {
        let (rows, columns) = window.kernel;
        Self::of(&vb.get((outputs, inputs, rows, columns), "weight")?, None, window)
    }

    /// A 3 x 3 convolution of the image after each pixel is repeated to 2 x 2: `-> (B, 2 H, 2 W, O)`.
    pub(crate) fn upsampling(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((outputs, inputs, 3, 3), "weight")?;
        Self::of_upsampling(&weight, Some(&unrounded(&vb).get(outputs, "bias")?))
    }

    /// [`upsampling`](Self::upsampling) without a bias.
    pub(crate) fn upsampling_no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Self::of_upsampling(&vb.get((outputs, inputs, 3, 3), "weight")?, None)
    }

    /// Builds the layer from `weight: (O, C, rows, columns)` and `bias: (O)`.
    pub(crate) fn of(weight: &Tensor, bias: Option<&Tensor>, window: Window2d) -> Result<Self> {
        let kernel = if is_packable(weight) {
            Kernel::Packed(PackedConv2d::new(weight, bias, window)?)
        } else {
            Kernel::Plain(PlainConv2d::new(weight, bias, window, false))
        };
        Ok(Self { kernel, activation: Activation::None })
    }

    fn of_upsampling(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let kernel = if is_packable(weight) {
            Kernel::Packed(PackedConv2d::upsampling(weight, bias)?)
        } else {
            Kernel::Plain(PlainConv2d::new(weight, bias, Window2d::SAME_3, true))
        };
        Ok(Self { kernel, activation: Activation::None })
    }

    /// Followed by an activation.
    pub(crate) fn then(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Gives results in the dtype of the weights, for a layer whose results are only multiplied again.
    pub(crate) fn rounded(self) -> Self {
        let kernel = match self.kernel {
            Kernel::Packed(conv) => Kernel::Packed(conv.rounded()),
            plain => plain,
        };
        Self { kernel, ..self }
    }

    /// `forward` with a residual of the result's shape added before the activation.
    pub(crate) fn forward_add(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.kernel {
            Kernel::Packed(conv) => conv.forward_add(xs, residual, self.activation),
            Kernel::Plain(conv) => activate(self.activation, &(conv.forward(xs)? + residual)?),
        }
    }
}

impl Module for Conv2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.kernel {
            Kernel::Packed(conv) => conv.forward(xs, self.activation),
            Kernel::Plain(conv) => activate(self.activation, &conv.forward(xs)?),
        }
    }
}

/// A convolution by candle's operations.
#[derive(Debug, Clone)]
struct PlainConv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    window: Window2d,
    upsampling: bool,
}

impl PlainConv2d {
    fn new(weight: &Tensor, bias: Option<&Tensor>, window: Window2d, upsampling: bool) -> Self {
        Self { weight: weight.clone(), bias: bias.cloned(), window, upsampling }
    }
}

impl Module for PlainConv2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let Window2d { stride, pad_before: (top, left), pad_after: (bottom, right), .. } = self.window;
        let (_, h, w, _) = xs.dims4()?;
        let mut xs = xs.permute((0, 3, 1, 2))?.contiguous()?; // (B, C, H, W)
        if self.upsampling {
            xs = xs.upsample_nearest2d(2 * h, 2 * w)?;
        }
        let xs = xs.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        let ys = xs.conv2d(&self.weight, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// `activation(x weight^T + bias + residual)` over the last axis: a convolution of single pixels.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    conv: Conv2d,
    outputs: usize,
}

impl Linear {
    /// Reads `weight: (O, C)` and `bias: (O)`.
    pub(crate) fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Self::of(&vb.get((outputs, inputs), "weight")?, Some(&unrounded(&vb).get(outputs, "bias")?))
    }

    /// Builds the layer from `weight: (O, C)` and `bias: (O)`.
    pub(crate) fn of(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let conv = Conv2d::of(&weight.reshape((outputs, inputs, 1, 1))?, bias, Window2d::POINT)?;
        Ok(Self { conv, outputs })
    }

    /// Followed by an activation.
    pub(crate) fn then(self, activation: Activation) -> Self {
        Self { conv: self.conv.then(activation), ..self }
    }

    /// Gives results in the dtype of the weights, for a layer whose results are only multiplied again.
    pub(crate) fn rounded(self) -> Self {
        Self { conv: self.conv.rounded(), ..self }
    }

    /// `forward` with a residual of the result's shape added before the activation.
    pub(crate) fn forward_add(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let rows = |xs: &Tensor| xs.flatten_to(D::Minus2)?.unsqueeze(0)?.unsqueeze(0);
        self.conv.forward_add(&rows(xs)?, &rows(residual)?)?.reshape(residual.shape())
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut dims = xs.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.outputs;
        }
        let rows = xs.flatten_to(D::Minus2)?.unsqueeze(0)?.unsqueeze(0)?;
        self.conv.forward(&rows)?.reshape(dims)
    }
}

/// `activation((x - mean) / sqrt(var + eps) * weight + bias)`, moments over (H, W, C / groups), in the network's dtype:
/// `(B, H, W, C) -> same`.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    options: GroupNormOptions,
}

impl GroupNorm {
    /// Reads `weight` and `bias` of `channels`.
    pub(crate) fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            bail!("expected channels divisible into {groups} groups, got {channels}");
        }
        let (ends, dtype) = (unrounded(&vb), vb.dtype());
        let options = GroupNormOptions { groups, eps, activation: Activation::None, dtype };
        Ok(Self { weight: ends.get(channels, "weight")?, bias: ends.get(channels, "bias")?, options })
    }

    /// Followed by an activation.
    pub(crate) fn then(mut self, activation: Activation) -> Self {
        self.options.activation = activation;
        self
    }

    fn plain(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = xs.dims4()?;
        let GroupNormOptions { groups, eps, activation, .. } = self.options;
        let split = (b, h * w, groups, c / groups);
        let grouped = at_least_f32(xs)?.reshape(split)?.transpose(1, 2)?.flatten_from(2)?; // (B, groups, ..)
        let ys = normalised(&grouped, eps)?.reshape((b, groups, h * w, c / groups))?;
        let ys = ys.transpose(1, 2)?.reshape((b, h, w, c))?.to_dtype(xs.dtype())?;
        activate(activation, &ys.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_fused(xs) {
            return group_norm(xs, &self.weight, &self.bias, &self.options);
        }
        self.plain(xs)
    }
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, in the network's dtype.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    dtype: DType,
}

impl LayerNorm {
    /// Reads `weight` and `bias` of `width`.
    pub(crate) fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let (ends, dtype) = (unrounded(&vb), vb.dtype());
        Ok(Self { weight: ends.get(width, "weight")?, bias: ends.get(width, "bias")?, eps, dtype })
    }

    /// The same without weight and bias.
    pub(crate) fn plain(self) -> Result<Self> {
        Ok(Self { weight: self.weight.ones_like()?, bias: self.bias.zeros_like()?, ..self })
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if is_fused(xs) {
            return layer_norm(xs, &self.weight, &self.bias, self.eps, self.dtype);
        }
        let ys = normalised(&at_least_f32(xs)?, self.eps)?.to_dtype(xs.dtype())?;
        ys.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// `softmax(q k^T / sqrt(K)) v` of every head: `(B, L, 3 N K)`, laid out (3, N, K), to `(B, L, N K)`.
pub(crate) fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    if is_fused(qkv) {
        return softmax_attention(qkv, num_heads);
    }
    let (b, l, width) = qkv.dims3()?;
    let parts = qkv.reshape((b, l, 3, num_heads, ()))?.permute((2, 0, 3, 1, 4))?.contiguous()?; // (3, B, N, L, K)
    let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let scores = (q.matmul(&k.t()?)? / (q.dim(D::Minus1)? as f64).sqrt())?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((b, l, width / 3))
}

/// The mean or the maximum over a window of 3 x 3, whose padding does not count: `(B, H, W, C) -> (B, H', W', C)`.
pub(crate) fn pool2d(xs: &Tensor, window: Window2d, mean: bool) -> Result<Tensor> {
    if is_fused(xs) {
        return if mean { mean_pool2d(xs, window) } else { max_pool2d(xs, window) };
    }
    let Window2d { kernel, stride, pad_before: (rows, columns), .. } = window;
    let (_, height, width, _) = xs.dims4()?;
    let xs = xs.permute((0, 3, 1, 2))?.contiguous()?; // (B, C, H, W)
    let ys = if mean {
        let padded_mean = |xs: &Tensor| {
            let xs = xs.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
            xs.avg_pool2d_with_stride(kernel, (stride, stride))
        };
        let inside = Tensor::ones((1, 1, height, width), xs.dtype(), xs.device())?;
        padded_mean(&xs)?.broadcast_div(&padded_mean(&inside)?)?
    } else {
        // Beyond the edge the edge is repeated, which changes no maximum.
        let xs = xs.pad_with_same(2, rows, rows)?.pad_with_same(3, columns, columns)?;
        xs.max_pool2d_with_stride(kernel, (stride, stride))?
    };
    ys.permute((0, 2, 3, 1))
}

/// Whether weights of this device and type can be packed.
fn is_packable(weight: &Tensor) -> bool {
    weight.device().is_cpu() && matches!(weight.dtype(), DType::F32 | DType::BF16)
}

/// Whether [`ddt_kernels`] computes with tensors of this device and type.
fn is_fused(xs: &Tensor) -> bool {
    xs.device().is_cpu() && matches!(xs.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// Half-precision numbers in f32, others as they are: what statistics are taken of.
fn at_least_f32(xs: &Tensor) -> Result<Tensor> {
    if xs.dtype() == DType::F64 { Ok(xs.clone()) } else { xs.to_dtype(DType::F32) }
}

fn normalised(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&std)
}

fn activate(activation: Activation, xs: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(xs.clone()),
        Activation::Relu => xs.relu(),
        Activation::Silu => xs.silu(),
        Activation::Gelu => xs.gelu_erf(),
    }
}
