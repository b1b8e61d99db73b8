//! Linear layers and their initialisers, which are named because candle's defaults are not PyTorch's.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// All zeros.
pub(crate) const ZEROS: Init = Init::Const(0.0);
/// All ones.
pub(crate) const ONES: Init = Init::Const(1.0);
/// `N(0, 0.02^2)`: the label table and the weights of the timestep MLP.
pub(crate) const NORMAL_0_02: Init = Init::Randn { mean: 0.0, stdev: 0.02 };

/// PyTorch's default for `nn.Linear`, weight and bias alike: uniform in `+-1/sqrt(fan_in)`.
pub(crate) fn pytorch_uniform(fan_in: usize) -> Init {
    symmetric((fan_in as f64).sqrt().recip())
}

/// Xavier uniform: uniform in `+-sqrt(6 / (fan_in + fan_out))`.
pub(crate) fn xavier_uniform(fan_in: usize, fan_out: usize) -> Init {
    symmetric((6.0 / (fan_in + fan_out) as f64).sqrt())
}

fn symmetric(bound: f64) -> Init {
    Init::Uniform { lo: -bound, up: bound }
}

/// `y = x W^T + b`, with `W` of shape `(out, in)`.
///
/// # Shapes
/// `xs: (.., in) -> (.., out)`, in the dtype of `xs`, to which weights of another are rounded.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Parameters `weight` and `bias`, initialised as PyTorch's `nn.Linear`.
    pub fn new(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        let bound = pytorch_uniform(in_size);
        Self::with_init(in_size, out_size, bound, Some(bound), vb)
    }

    /// Parameter `weight` without a bias, initialised as PyTorch's `nn.Linear`.
    pub fn no_bias(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(in_size, out_size, pytorch_uniform(in_size), None, vb)
    }

    /// Xavier-uniform weight and zero bias, as DiT and SiT initialise theirs.
    pub fn xavier(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(in_size, out_size, xavier_uniform(in_size, out_size), Some(ZEROS), vb)
    }

    /// Weight and bias zero.
    pub fn zeros(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_init(in_size, out_size, ZEROS, Some(ZEROS), vb)
    }

    /// The given initialisers; no bias where its initialiser is `None`.
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

    /// The layer of these tensors.
    pub(crate) fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `(out, in)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The layer of the outputs `start..start + len`; it shares the weights.
    pub(crate) fn outputs(&self, start: usize, len: usize) -> Result<Self> {
        let bias = self.bias.as_ref().map(|it| it.narrow(0, start, len)).transpose()?;
        Ok(Self { weight: self.weight.narrow(0, start, len)?, bias })
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        affine(xs, &self.weight, self.bias.as_ref())
    }
}

/// One flat matmul for any number of leading axes: a broadcast matmul is much slower.
fn affine(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let leading = match xs.dims().split_last() {
        Some((last, leading)) if *last == in_size => leading,
        _ => bail!("expected (.., {in_size}), got {:?}", xs.dims()),
    };
    let dtype = xs.dtype();
    if weight.dtype() == DType::F32 && matches!(dtype, DType::F32 | DType::BF16) && xs.device().is_cpu() {
        return ddt_kernels::linear(xs, weight, bias);
    }
    let rows: usize = leading.iter().product();
    let mut ys = xs.reshape((rows, in_size))?.matmul(&weight.to_dtype(dtype)?.t()?)?; // (rows, out)
    if let Some(bias) = bias {
        ys = ys.broadcast_add(&bias.to_dtype(dtype)?)?;
    }
    let shape: Vec<usize> = leading.iter().copied().chain([out_size]).collect();
    ys.reshape(shape)
}

/// `Linear, SiLU, Linear, SiLU, Linear`: from a network's tokens to the features they are aligned with (REPA,
/// arXiv:2410.06940).
///
/// # Shapes
/// `xs: (B, L, D) -> (B, L, feature_size)`.
#[derive(Debug, Clone)]
pub struct ProjectionHead {
    layers: [Linear; 3],
}

impl ProjectionHead {
    /// Parameters `0`, `2` and `4`, initialised as PyTorch's `nn.Linear`: DDT's head.
    pub fn new(token_size: usize, hidden_size: usize, feature_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(Linear::new, [token_size, hidden_size, feature_size], vb)
    }

    /// The same parameters, Xavier-uniform and zero: REPA's head.
    pub fn xavier(
        token_size: usize,
        hidden_size: usize,
        feature_size: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        Self::build(Linear::xavier, [token_size, hidden_size, feature_size], vb)
    }

    fn build(
        linear: fn(usize, usize, VarBuilder) -> Result<Linear>,
        [token_size, hidden_size, feature_size]: [usize; 3],
        vb: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            layers: [
                linear(token_size, hidden_size, vb.pp(0))?,
                linear(hidden_size, hidden_size, vb.pp(2))?,
                linear(hidden_size, feature_size, vb.pp(4))?,
            ],
        })
    }
}

impl Module for ProjectionHead {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.layers;
        let xs = ddt_kernels::silu(&first.forward(xs)?)?;
        let xs = ddt_kernels::silu(&second.forward(&xs)?)?;
        third.forward(&xs)
    }
}
