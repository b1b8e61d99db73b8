//! The network as data: what follows what, and with which weights.

use std::result::Result;

use candle_core::Tensor;
use candle_nn::VarBuilder;

pub use crate::dense::{Pool, Window};

/// A convolution without a bias, with the batch normalisation after it folded into it.
#[derive(Debug, Clone)]
pub struct FoldedConv {
    /// (out, in, rows, columns).
    pub weight: Tensor,
    /// (out).
    pub bias: Tensor,
    /// What is seen at each position.
    pub window: Window,
}

/// The reference's, a hundred times PyTorch's default.
const EPS: f64 = 1e-3;

impl FoldedConv {
    /// Reads `conv.weight` and the batch normalisation `bn` after it, and makes one convolution of both.
    ///
    /// ```text
    /// weight' = weight g,   bias' = bias - mean g,   g = weight_bn / sqrt(var + eps)
    /// ```
    pub(super) fn read(
        (inp, out): (usize, usize),
        window: Window,
        vb: VarBuilder,
    ) -> candle_core::Result<Self> {
        let weight = vb.pp("conv").get((out, inp, window.kernel.0, window.kernel.1), "weight")?;
        let bn = vb.pp("bn");
        let gain = (bn.get(out, "weight")? / (bn.get(out, "running_var")? + EPS)?.sqrt()?)?;
        let bias = (bn.get(out, "bias")? - (bn.get(out, "running_mean")? * &gain)?)?;
        let weight = weight.broadcast_mul(&gain.reshape((out, 1, 1, 1))?)?;
        Ok(Self { weight, bias, window })
    }
}

/// The convolutions of the network, each followed by a ReLU, and the pools between them.
///
/// The stem's pools (3 x 3, stride 2) stand before its fourth convolution and after its last.
#[derive(Debug, Clone)]
pub struct Layers<C> {
    /// Five convolutions, one after the other.
    pub stem: Vec<C>,
    /// Mixed 5b to 6d.
    pub middle: Vec<Mixed<C>>,
    /// Mixed 6e to 7c.
    pub last: Vec<Mixed<C>>,
}

/// Branches over one input, their results side by side.
#[derive(Debug, Clone)]
pub struct Mixed<C>(pub Vec<Branch<C>>);

/// A pool, then convolutions one after the other, then some on the same result, side by side.
#[derive(Debug, Clone)]
pub struct Branch<C> {
    /// What is pooled first.
    pub pool: Option<Pool>,
    /// One after the other.
    pub convs: Vec<C>,
    /// All on the same result; their results stand side by side in the place of that.
    pub last: Vec<C>,
}

impl<C> Layers<C> {
    /// The same with other convolutions.
    ///
    /// # Errors
    ///
    /// The first of `f`.
    pub fn try_map<D, E>(&self, mut f: impl FnMut(&C) -> Result<D, E>) -> Result<Layers<D>, E> {
        let mut mixed = |all: &[Mixed<C>]| -> Result<Vec<Mixed<D>>, E> {
            all.iter().map(|it| it.try_map(&mut f)).collect()
        };
        let (middle, last) = (mixed(&self.middle)?, mixed(&self.last)?);
        Ok(Layers { stem: self.stem.iter().map(f).collect::<Result<_, E>>()?, middle, last })
    }
}

impl<C> Mixed<C> {
    fn try_map<D, E>(&self, f: &mut impl FnMut(&C) -> Result<D, E>) -> Result<Mixed<D>, E> {
        let branch = |it: &Branch<C>| {
            let mut map = |convs: &[C]| convs.iter().map(&mut *f).collect::<Result<Vec<D>, E>>();
            Ok(Branch { pool: it.pool, convs: map(&it.convs)?, last: map(&it.last)? })
        };
        self.0.iter().map(branch).collect::<Result<_, E>>().map(Mixed)
    }
}
