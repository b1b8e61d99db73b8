//! DINOv2, a frozen vision transformer whose patch tokens DDT's encoder is aligned with.
//!
//! Names are those of the published files.

mod block;
mod config;

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;

use self::block::{Block, layer_norm};
use crate::dense::{Epilogue, LayerNorm, Linear};
use crate::load::{LoadError, build};
use crate::resize::{Interpolation, resize};

pub use self::config::{DinoV2Config, DinoV2Mlp, swiglu_width};

/// Mean and spread of ImageNet's pixels in `[0, 1]`, as red, green, blue.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Tokens that pass through the network at once, if they are not one image.
const MAX_TOKENS_AT_ONCE: usize = 4096;

/// What DINOv2 sees in some images, after its last norm.
#[derive(Debug, Clone)]
pub struct DinoV2Features {
    /// One token a patch, row by row: `(B, rows columns, D)`, `f32`.
    pub patch_tokens: Tensor,
    /// One token an image: `(B, D)`, `f32`.
    pub class_token: Tensor,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
}

/// A DINOv2 vision transformer.
///
/// ```text
/// tokens = [class + p_0, registers, patches + p],  then blocks of attention and feed-forward, norm
/// ```
///
/// The stored positions `p` are resampled to the images' grid, bicubically with antialiasing (a = -0.5);
/// registers have none. Sec. 3 of arXiv:2304.07193 and of arXiv:2309.16588.
/// Computes in the type of its weights; takes and gives `f32`, a few images at a time.
/// Frozen: on the CPU, a `backward` through it is an error.
#[derive(Debug, Clone)]
pub struct DinoV2 {
    patches: Linear,
    class_token: Tensor,
    /// Of the class token `(1, 1, D)`, and of the patches `(D, grid, grid)`.
    positions: (Tensor, Tensor),
    registers: Option<Tensor>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    cfg: DinoV2Config,
    dtype: DType,
}

impl DinoV2 {
    /// Makes the network; `vb` stands where `cls_token` is.
    ///
    /// The published files also hold a `mask_token`, which only training uses: it is not asked for.
    ///
    /// # Errors
    ///
    /// A configuration that [`DinoV2Config::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (width, patch, grid) = (cfg.hidden_size, cfg.patch_size, cfg.position_grid);
        let proj = vb.pp("patch_embed.proj");
        let weight = proj.get((width, 3, patch, patch), "weight")?.flatten_from(1)?;
        let positions = vb.get((1, 1 + grid * grid, width), "pos_embed")?;
        let patch_positions = positions.get(0)?.narrow(0, 1, grid * grid)?.t()?;
        let registers = match cfg.num_registers {
            0 => None,
            n => Some(vb.get((1, n, width), "register_tokens")?),
        };
        let blocks = vb.pp("blocks");
        Ok(Self {
            patches: Linear::new(&weight, Some(&proj.get(width, "bias")?))?,
            class_token: vb.get((1, 1, width), "cls_token")?,
            positions: (positions.narrow(1, 0, 1)?, patch_positions.reshape((width, grid, grid))?),
            registers,
            blocks: (0..cfg.num_blocks).map(|i| Block::new(cfg, blocks.pp(i))).collect::<Result<_>>()?,
            norm: layer_norm(width, vb.pp("norm"))?,
            cfg: cfg.clone(),
            dtype: vb.dtype(),
        })
    }

    /// Makes the network, in `f32`, from a source that holds its tensors and no others.
    ///
    /// A `mask_token` is passed over.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Mismatch`](ddt_files::CheckpointError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load<S>(cfg: &DinoV2Config, source: &S, device: &Device) -> std::result::Result<Self, LoadError>
    where
        S: TensorSource + Sync + ?Sized,
    {
        build(source, device, |name| name != "mask_token", |vb| Self::new(cfg, vb))
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &DinoV2Config {
        &self.cfg
    }

    /// Features of images as they are stored: [`preprocess`](Self::preprocess), then
    /// [`forward`](Self::forward).
    ///
    /// # Shapes
    ///
    /// `pixels: (B, 3, H, W)` in `[0, 1]`; see [`DinoV2Features`].
    ///
    /// # Errors
    ///
    /// As those two.
    pub fn features(&self, pixels: &Tensor) -> Result<DinoV2Features> {
        self.forward(&self.preprocess(pixels)?)
    }

    /// Normalised images of the size that representation alignment uses.
    ///
    /// ```text
    /// y = (resize(x) - mean) / std,   side -> floor(224 side / 256)
    /// ```
    ///
    /// Bicubic with a = -0.75, without antialiasing.
    ///
    /// # Shapes
    ///
    /// `pixels: (B, 3, H, W)` in `[0, 1] -> (B, 3, H', W')`, `f32`
    ///
    /// # Errors
    ///
    /// Any other shape, and sides whose resized length is not a multiple of the patch.
    pub fn preprocess(&self, pixels: &Tensor) -> Result<Tensor> {
        let &[b, 3, h, w] = pixels.dims() else {
            bail!("expected pixels (B, 3, H, W), got {:?}", pixels.shape());
        };
        let to = (resized(h), resized(w));
        if let Err(error) = self.grid(to) {
            bail!("pixels of {h} x {w} become {} x {}: {error}", to.0, to.1);
        }
        let planes = pixels.to_dtype(DType::F32)?.reshape((b * 3, h, w))?;
        let ys = resize(&planes, to, Interpolation::Cubic)?.reshape((b, 3, to.0, to.1))?;
        let colours = |values: [f32; 3]| Tensor::new(&values, pixels.device())?.reshape((1, 3, 1, 1));
        ys.broadcast_sub(&colours(MEAN)?)?.broadcast_div(&colours(STD)?)
    }

    /// Features of normalised images of any size in whole patches.
    ///
    /// # Shapes
    ///
    /// `images: (B, 3, H, W)` with sides that are multiples of the patch; see [`DinoV2Features`].
    ///
    /// # Errors
    ///
    /// Any other shape.
    pub fn forward(&self, images: &Tensor) -> Result<DinoV2Features> {
        let &[b, 3, h, w] = images.dims() else {
            bail!("expected images (B, 3, H, W), got {:?}", images.shape());
        };
        let grid = self.grid((h, w))?;
        if b == 0 {
            bail!("expected at least one image, got {:?}", images.shape());
        }
        let positions = self.positions_of(grid)?;
        let at_once = (MAX_TOKENS_AT_ONCE / (grid.0 * grid.1)).max(1);
        let mut all = Vec::new();
        for first in (0..b).step_by(at_once) {
            let some = images.narrow(0, first, at_once.min(b - first))?.to_dtype(self.dtype)?;
            all.push(self.tokens(&some, grid, &positions)?);
        }
        let tokens = Tensor::cat(&all, 0)?.to_dtype(DType::F32)?; // (B, 1 + registers + patches, D)
        Ok(DinoV2Features {
            patch_tokens: tokens.narrow(1, 1 + self.cfg.num_registers, grid.0 * grid.1)?.contiguous()?,
            class_token: tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            grid,
        })
    }

    /// The positions that patches of a grid get, `(1, 1 + rows columns, D)`, the class token's first.
    ///
    /// # Errors
    ///
    /// A grid without patches.
    pub fn positions(&self, grid: (usize, usize)) -> Result<Tensor> {
        Tensor::cat(&[&self.positions.0, &self.positions_of(grid)?], 1)
    }

    /// Rows and columns of patches in an image of this height and width.
    fn grid(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let patch = self.cfg.patch_size;
        if height * width == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            bail!("expected sides that are multiples of {patch}, got {height} x {width}");
        }
        Ok((height / patch, width / patch))
    }

    fn positions_of(&self, grid: (usize, usize)) -> Result<Tensor> {
        let stored = self.positions.1.to_dtype(DType::F32)?;
        let planes = resize(&stored, grid, Interpolation::CubicAntialias)?; // (D, rows, columns)
        planes.flatten_from(1)?.t()?.unsqueeze(0)?.to_dtype(self.dtype) // (1, rows columns, D)
    }

    fn tokens(&self, images: &Tensor, (rows, columns): (usize, usize), positions: &Tensor) -> Result<Tensor> {
        let (b, c, _, _) = images.dims4()?;
        let patch = self.cfg.patch_size;
        let pixels = images.reshape((b, c, rows, patch, columns, patch))?;
        let pixels = pixels.permute((0, 2, 4, 1, 3, 5))?.reshape((b, rows * columns, ()))?;
        let patches = self.patches.forward(&pixels, Epilogue::None)?.broadcast_add(positions)?;
        let every = |token: &Tensor| {
            let (_, n, width) = token.dims3()?;
            token.broadcast_as((b, n, width))
        };
        let mut tokens = vec![every(&(&self.class_token + &self.positions.0)?)?];
        if let Some(registers) = &self.registers {
            tokens.push(every(registers)?);
        }
        tokens.push(patches);
        let mut xs = Tensor::cat(&tokens, 1)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        self.norm.forward(&xs)
    }
}

/// A side after preprocessing.
fn resized(side: usize) -> usize {
    side.saturating_mul(224) / 256
}
