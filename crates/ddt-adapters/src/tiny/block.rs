//! The residual block that everything in a tiny autoencoder is made of.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::dense::{Conv, Epilogue, Window};
use crate::group_norm::{Activation, GroupNorm};

/// `relu(conv(relu(conv(relu(conv(x))))) + x)`, after `x += pool(x)` where there is a pool.
///
/// Images lie as `(B, H, W, C)`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pool: Option<Pool>,
    convs: [Conv; 3],
}

impl Block {
    pub(super) fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let conv = |name| Conv::read((width, width), Window::SAME, vb.pp(name));
        Ok(Self { pool: None, convs: [conv("conv.0")?, conv("conv.2")?, conv("conv.4")?] })
    }

    pub(super) fn with_pool(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { pool: Some(Pool::new(width, vb.pp("pool"))?), ..Self::new(width, vb)? })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let pooled = match &self.pool {
            Some(pool) => pool.added_to(xs)?,
            None => xs.clone(),
        };
        let [first, second, third] = &self.convs;
        let ys = second.forward(&first.forward(&pooled, Epilogue::Relu)?, Epilogue::Relu)?;
        third.forward_add(&ys, &pooled, Epilogue::Relu)
    }
}

/// Two 1x1 convolutions around a normalisation, which carries statistics of the whole image.
#[derive(Debug, Clone)]
struct Pool {
    widen: Conv,
    norm: GroupNorm,
    narrow: Conv,
}

impl Pool {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        let wide = 4 * width;
        Ok(Self {
            widen: Conv::read_no_bias((width, wide), Window::POINT, vb.pp(0))?,
            norm: GroupNorm::new((wide, 4), 1e-5, Activation::Relu, vb.pp(1))?,
            narrow: Conv::read_no_bias((wide, width), Window::POINT, vb.pp(3))?,
        })
    }

    fn added_to(&self, xs: &Tensor) -> Result<Tensor> {
        let wide = self.widen.forward(xs, Epilogue::None)?.permute((0, 3, 1, 2))?; // (B, C, H, W)
        let normed = self.norm.forward(&wide)?.permute((0, 2, 3, 1))?;
        self.narrow.forward_add(&normed, xs, Epilogue::None)
    }
}

/// `count` blocks named from `first` on.
pub(super) fn blocks(
    names: std::ops::Range<usize>,
    make: fn(usize, VarBuilder) -> Result<Block>,
    width: usize,
    vb: &VarBuilder,
) -> Result<Vec<Block>> {
    names.map(|name| make(width, vb.pp(name))).collect()
}

pub(super) fn forward_all(blocks: &[Block], xs: Tensor) -> Result<Tensor> {
    blocks.iter().try_fold(xs, |xs, block| block.forward(&xs))
}
