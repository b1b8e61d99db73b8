//! Time and class as vectors.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::{
    form::Form,
    linear::{Linear, NORMAL_0_02, ZEROS, pytorch_uniform},
};

/// Timestep embedder: sines and cosines of the flow time, then an MLP.
///
/// ```text
/// angle[k] = t * exp(-ln(period) k / 128), k = 0 .. 128;  y = mlp.2(silu(mlp.0([cos, sin])))
/// angle[k] = 2 pi t W[k], k = 0 .. 256;                   y = mlp.2(silu(mlp.0([sin, cos])))     (DiT^DH)
/// ```
///
/// `t` in [0, 1] is not scaled. The longest period is 10 in DDT, 10,000 in SiT; DiT^DH has a parameter `W` instead.
///
/// # Shapes
/// `t: (B)` in f32 `-> (B, D)` in the weights' dtype.
#[derive(Debug, Clone)]
pub struct TimestepEmbed {
    first: Linear,
    second: Linear,
    frequencies: Frequencies,
}

#[derive(Debug, Clone)]
enum Frequencies {
    /// Frequencies from 1 down to one over this longest period; cosines come before sines.
    UpTo(f64),
    /// A parameter, `(256)` f32; sines come before cosines.
    Gaussian(Tensor),
}

impl TimestepEmbed {
    const HALF: usize = 128;

    /// DDT's: parameters `mlp.0` and `mlp.2`, biases as PyTorch's.
    pub fn new(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, Frequencies::UpTo(10.0), pytorch_uniform, vb)
    }

    /// SiT's: the same parameters, with zero biases.
    pub fn sit(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(hidden_size, Frequencies::UpTo(10_000.0), |_| ZEROS, vb)
    }

    /// DiT^DH's: DDT's parameters and `W`, standard normal, which is f32 in any network.
    pub fn gaussian(hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let frequencies = vb.get_with_hints_dtype(2 * Self::HALF, "W", normal, DType::F32)?;
        Self::build(hidden_size, Frequencies::Gaussian(frequencies), pytorch_uniform, vb)
    }

    fn build(
        hidden_size: usize,
        frequencies: Frequencies,
        bias: fn(usize) -> Init,
        vb: VarBuilder,
    ) -> Result<Self> {
        let linear = |fan_in, vb| Linear::with_init(fan_in, hidden_size, NORMAL_0_02, Some(bias(fan_in)), vb);
        let vb = vb.pp("mlp");
        let half = match &frequencies {
            Frequencies::UpTo(_) => Self::HALF,
            Frequencies::Gaussian(it) => it.dim(0)?,
        };
        let (first, second) = (linear(2 * half, vb.pp("0"))?, linear(hidden_size, vb.pp("2"))?);
        Ok(Self { first, second, frequencies })
    }

    /// Cosines and sines, in the order that the MLP takes.
    fn waves(&self, t: &Tensor) -> Result<Tensor> {
        let t = t.to_dtype(DType::F32)?.unsqueeze(1)?;
        let at = |frequencies: &Tensor| t.broadcast_mul(&frequencies.unsqueeze(0)?); // (B, HALF)
        match &self.frequencies {
            Frequencies::UpTo(max_period) => {
                let frequency = |k| (-max_period.ln() * k as f64 / Self::HALF as f64).exp() as f32;
                let frequencies: Vec<f32> = (0..Self::HALF).map(frequency).collect();
                let angles = at(&Tensor::from_vec(frequencies, Self::HALF, t.device())?)?;
                Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
            }
            Frequencies::Gaussian(frequencies) => {
                let angles = at(&(frequencies * std::f64::consts::TAU)?)?;
                Tensor::cat(&[angles.sin()?, angles.cos()?], 1)
            }
        }
    }
}

impl Module for TimestepEmbed {
    fn forward(&self, t: &Tensor) -> Result<Tensor> {
        let embedding = self.waves(t)?;
        let hidden = self.first.forward(&embedding.to_dtype(self.first.weight().dtype())?)?;
        self.second.forward(&ddt_kernels::silu(&hidden)?)
    }
}

/// Label embedder: a table of a row for each label; the last is usually "no class".
///
/// # Shapes
/// `labels: (B)`, u32 in `0..num_labels`, `-> (B, D)`. On the CPU a label outside the table is an error.
#[derive(Debug, Clone)]
pub struct LabelEmbed {
    table: Tensor,
}

impl LabelEmbed {
    /// Parameter `embedding_table.weight`.
    pub fn new(num_labels: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let shape = (num_labels, hidden_size);
        Ok(Self { table: vb.pp("embedding_table").get_with_hints(shape, "weight", NORMAL_0_02)? })
    }
}

impl Module for LabelEmbed {
    fn forward(&self, labels: &Tensor) -> Result<Tensor> {
        self.table.index_select(labels, 0)
    }
}

/// Time and class of each image, embedded: what a network's condition is made of.
///
/// The dtype of its `vb` is the one that the network computes in, whatever its weights have: every layer after this
/// computes in the dtype of its input, except for [fused](crate::Fused) blocks.
#[derive(Debug, Clone)]
pub struct ConditionEmbed {
    t_embedder: TimestepEmbed,
    y_embedder: LabelEmbed,
    dtype: DType,
}

impl ConditionEmbed {
    /// DDT's: parameters `t_embedder` and `y_embedder`, whose last row is "no class".
    pub fn new(num_classes: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(TimestepEmbed::new, num_classes + 1, hidden_size, vb)
    }

    /// SiT's: the same parameters, with SiT's timestep embedder.
    pub fn sit(num_classes: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(TimestepEmbed::sit, num_classes + 1, hidden_size, vb)
    }

    /// DiT^DH's: the same parameters, with DiT^DH's timestep embedder and any number of labels.
    pub fn dit_dh(num_labels: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(TimestepEmbed::gaussian, num_labels, hidden_size, vb)
    }

    fn build(
        t_embedder: fn(usize, VarBuilder) -> Result<TimestepEmbed>,
        num_labels: usize,
        hidden_size: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            t_embedder: t_embedder(hidden_size, vb.pp("t_embedder"))?,
            y_embedder: LabelEmbed::new(num_labels, hidden_size, vb.pp("y_embedder"))?,
            dtype: vb.dtype(),
        })
    }

    /// The embeddings of time and class.
    ///
    /// # Shapes
    /// `t: (B)` in f32, `labels: (B)` in u32 `-> (t_emb, y_emb)`, each `(B, 1, D)` in the network's dtype.
    ///
    /// # Errors
    /// When there are more times than labels or fewer, or a label is outside the table.
    pub fn forward(&self, t: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        if t.dims1()? != labels.dims1()? {
            bail!("expected as many times as labels, got {:?} and {:?}", t.dims(), labels.dims());
        }
        let embedded = |it: Tensor| it.to_dtype(self.dtype)?.unsqueeze(1);
        Ok((embedded(self.t_embedder.forward(t)?)?, embedded(self.y_embedder.forward(labels)?)?))
    }

    /// The same layers for a network of another form.
    pub fn into_form<F: Form>(self) -> Result<Self> {
        let Self { t_embedder: TimestepEmbed { first, second, frequencies }, y_embedder, dtype } = self;
        let linear = |it: Linear| {
            let bias = it.bias().cloned().map(F::tensor).transpose()?;
            Ok::<_, candle_core::Error>(Linear::from_tensors(F::tensor(it.weight().clone())?, bias))
        };
        let (first, second) = (linear(first)?, linear(second)?);
        let frequencies = match frequencies {
            Frequencies::UpTo(max_period) => Frequencies::UpTo(max_period),
            Frequencies::Gaussian(it) => Frequencies::Gaussian(F::tensor(it)?),
        };
        Ok(Self {
            t_embedder: TimestepEmbed { first, second, frequencies },
            y_embedder: LabelEmbed { table: F::tensor(y_embedder.table)? },
            dtype: F::token_dtype(dtype),
        })
    }
}
