//! The network as data: which convolutions and pools follow each other, and with which weights.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use ddt_kernels::Window2d;

const SAME_5: Window2d = Window2d::new((5, 5), 1, (2, 2));
const ROW_3: Window2d = Window2d::new((1, 3), 1, (0, 1));
const COLUMN_3: Window2d = Window2d::new((3, 1), 1, (1, 0));
const ROW_7: Window2d = Window2d::new((1, 7), 1, (0, 3));
const COLUMN_7: Window2d = Window2d::new((7, 1), 1, (3, 0));
const POINT: Window2d = Window2d::POINT;
const SAME_3: Window2d = Window2d::SAME_3;
/// Unpadded.
pub(super) const VALID_3: Window2d = Window2d::new((3, 3), 1, (0, 0));
/// Unpadded, of stride 2.
pub(super) const DOWN_3: Window2d = Window2d::new((3, 3), 2, (0, 0));

/// Epsilon of the batch normalisation: a hundred times PyTorch's default.
const EPS: f64 = 1e-3;

/// A convolution with the batch normalisation after it folded into it.
#[derive(Debug, Clone)]
pub struct FoldedConv {
    /// (out, in, rows, columns).
    pub weight: Tensor,
    /// (out).
    pub bias: Tensor,
    /// The pixels that each position sees.
    pub window: Window2d,
}

impl FoldedConv {
    /// Reads `conv.weight` and the batch normalisation `bn` after it, and folds both into one convolution.
    ///
    /// ```text
    /// weight' = weight g,   bias' = bias - mean g,   g = weight_bn / sqrt(var + eps)
    /// ```
    pub(super) fn read(inp: usize, out: usize, window: Window2d, vb: VarBuilder) -> Result<Self> {
        let weight = vb.pp("conv").get((out, inp, window.kernel.0, window.kernel.1), "weight")?;
        let bn = vb.pp("bn");
        let gain = (bn.get(out, "weight")? / (bn.get(out, "running_var")? + EPS)?.sqrt()?)?;
        let bias = (bn.get(out, "bias")? - (bn.get(out, "running_mean")? * &gain)?)?;
        let weight = weight.broadcast_mul(&gain.reshape((out, 1, 1, 1))?)?;
        Ok(Self { weight, bias, window })
    }
}

/// A pool over 3 x 3 pixels; padding does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The pixels that each position sees.
    pub window: Window2d,
    /// Mean instead of maximum.
    pub mean: bool,
}

impl Pool {
    /// The maximum, of stride 2, without padding.
    pub const MAX_DOWN: Self = Self { window: DOWN_3, mean: false };
    /// The maximum, at every pixel.
    pub const MAX_SAME: Self = Self { window: SAME_3, mean: false };
    /// The mean, at every pixel.
    pub const MEAN_SAME: Self = Self { window: SAME_3, mean: true };
}

/// The convolutions of the network, each followed by a ReLU, and the pools between them.
///
/// The stem's pools ([`Pool::MAX_DOWN`]) are before its fourth convolution and after its last.
#[derive(Debug, Clone)]
pub struct Layers<C> {
    /// Five convolutions, one after the other.
    pub stem: Vec<C>,
    /// Mixed 5b to 6d.
    pub middle: Vec<Mixed<C>>,
    /// Mixed 6e to 7c.
    pub last: Vec<Mixed<C>>,
}

/// Branches over one input, whose results are concatenated.
#[derive(Debug, Clone)]
pub struct Mixed<C>(pub Vec<Branch<C>>);

/// A pool, then convolutions one after the other, then perhaps several on the same result.
#[derive(Debug, Clone)]
pub struct Branch<C> {
    /// The pool, which comes first.
    pub pool: Option<Pool>,
    /// Convolutions in sequence.
    pub convs: Vec<C>,
    /// All on the same result; their results are concatenated in its place.
    pub last: Vec<C>,
}

impl<C> Layers<C> {
    /// The same layers with other convolutions.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn try_map<D, E>(
        &self,
        mut f: impl FnMut(&C) -> std::result::Result<D, E>,
    ) -> std::result::Result<Layers<D>, E> {
        let mut convs = |convs: &[C]| convs.iter().map(&mut f).collect::<std::result::Result<Vec<D>, E>>();
        let mut branch =
            |it: &Branch<C>| Ok(Branch { pool: it.pool, convs: convs(&it.convs)?, last: convs(&it.last)? });
        let mut mixed = |all: &[Mixed<C>]| {
            let all =
                all.iter().map(|it| it.0.iter().map(&mut branch).collect::<std::result::Result<_, E>>());
            all.map(|it| it.map(Mixed)).collect::<std::result::Result<Vec<_>, E>>()
        };
        let (middle, last) = (mixed(&self.middle)?, mixed(&self.last)?);
        Ok(Layers { stem: convs(&self.stem)?, middle, last })
    }
}

/// Name, outputs and window of a convolution.
type Layer = (&'static str, usize, Window2d);

impl Branch<FoldedConv> {
    fn new(inp: usize, layers: &[Layer], vb: &VarBuilder) -> Result<Self> {
        Self::split(inp, layers, &[], vb)
    }

    fn split(inp: usize, layers: &[Layer], last: &[Layer], vb: &VarBuilder) -> Result<Self> {
        let mut width = inp;
        let mut convs = Vec::new();
        for &(name, out, window) in layers {
            convs.push(FoldedConv::read(width, out, window, vb.pp(name))?);
            width = out;
        }
        let last = last.iter().map(|&(name, out, window)| FoldedConv::read(width, out, window, vb.pp(name)));
        Ok(Self { pool: None, convs, last: last.collect::<Result<_>>()? })
    }

    fn pooled(self, pool: Pool) -> Self {
        Self { pool: Some(pool), ..self }
    }

    fn only(pool: Pool) -> Self {
        Self { pool: Some(pool), convs: vec![], last: vec![] }
    }
}

impl Mixed<FoldedConv> {
    /// At 35 x 35 (`InceptionA`): 5 x 5 and twice 3 x 3.
    pub(super) fn a(inp: usize, pooled: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch1x1", 64, POINT)])?,
            branch(&[("branch5x5_1", 48, POINT), ("branch5x5_2", 64, SAME_5)])?,
            branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, SAME_3),
                ("branch3x3dbl_3", 96, SAME_3),
            ])?,
            branch(&[("branch_pool", pooled, POINT)])?.pooled(Pool::MEAN_SAME),
        ]))
    }

    /// From 35 x 35 to 17 x 17 (`InceptionB`).
    pub(super) fn b(inp: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch3x3", 384, DOWN_3)])?,
            branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, SAME_3),
                ("branch3x3dbl_3", 96, DOWN_3),
            ])?,
            Branch::only(Pool::MAX_DOWN),
        ]))
    }

    /// At 17 x 17 (`InceptionC`): rows and columns of 7.
    pub(super) fn c(inp: usize, inner: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch1x1", 192, POINT)])?,
            branch(&[
                ("branch7x7_1", inner, POINT),
                ("branch7x7_2", inner, ROW_7),
                ("branch7x7_3", 192, COLUMN_7),
            ])?,
            branch(&[
                ("branch7x7dbl_1", inner, POINT),
                ("branch7x7dbl_2", inner, COLUMN_7),
                ("branch7x7dbl_3", inner, ROW_7),
                ("branch7x7dbl_4", inner, COLUMN_7),
                ("branch7x7dbl_5", 192, ROW_7),
            ])?,
            branch(&[("branch_pool", 192, POINT)])?.pooled(Pool::MEAN_SAME),
        ]))
    }

    /// From 17 x 17 to 8 x 8 (`InceptionD`).
    pub(super) fn d(inp: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch3x3_1", 192, POINT), ("branch3x3_2", 320, DOWN_3)])?,
            branch(&[
                ("branch7x7x3_1", 192, POINT),
                ("branch7x7x3_2", 192, ROW_7),
                ("branch7x7x3_3", 192, COLUMN_7),
                ("branch7x7x3_4", 192, DOWN_3),
            ])?,
            Branch::only(Pool::MAX_DOWN),
        ]))
    }

    /// At 8 x 8 (`InceptionE`): 3 x 3 split into a row and a column; the pool differs between the two blocks.
    pub(super) fn e(inp: usize, pool: Pool, vb: &VarBuilder) -> Result<Self> {
        Ok(Self(vec![
            Branch::new(inp, &[("branch1x1", 320, POINT)], vb)?,
            Branch::split(
                inp,
                &[("branch3x3_1", 384, POINT)],
                &[("branch3x3_2a", 384, ROW_3), ("branch3x3_2b", 384, COLUMN_3)],
                vb,
            )?,
            Branch::split(
                inp,
                &[("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, SAME_3)],
                &[("branch3x3dbl_3a", 384, ROW_3), ("branch3x3dbl_3b", 384, COLUMN_3)],
                vb,
            )?,
            Branch::new(inp, &[("branch_pool", 192, POINT)], vb)?.pooled(pool),
        ]))
    }
}

/// Weights computed from their names only, so that the network can be compared and timed without its file: uniform
/// numbers hashed from the name and the element's index, scaled so that activations keep their size.
pub(super) fn synthetic_weights(device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Synthetic), DType::F32, device.clone())
}

struct Synthetic;

impl SimpleBackend for Synthetic {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let fan_in: usize = shape.dims().iter().skip(1).product();
        let scaled = |u: f64| match name {
            _ if name.ends_with("running_var") => 1.0 + 0.2 * u,
            _ if name.ends_with("bn.weight") => 1.0 + 0.1 * u,
            _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.1 * u,
            _ => (6.0 / fan_in as f64).sqrt() * u,
        };
        // FNV-1a of the name, then splitmix64.
        let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        let uniform = |i: u64| {
            let z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1u32 << 23) - 1.0 // [-1, 1)
        };
        let values = (0..shape.elem_count() as u64).map(|i| scaled(uniform(i)) as f32).collect();
        Tensor::from_vec::<_, f32>(values, shape, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("expected a shape with the name {name}, got none")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
