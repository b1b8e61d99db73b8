//! DINOv2, a frozen vision transformer whose patch tokens DDT's encoder is aligned with.
//!
//! Follows [`vision_transformer.py`] of DINOv2 and keeps the names of its files.
//!
//! [`vision_transformer.py`]: https://github.com/facebookresearch/dinov2/blob/112792f1667374eb2253cc82bca19d101655356f/dinov2/models/vision_transformer.py

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::{Activation, Window2d};
use serde::{Deserialize, Serialize};

use crate::layers::{Conv2d, LayerNorm, Linear, attention, stream_dtype, unrounded};
use crate::load::{LoadError, load_network};
use crate::resize::{Interpolation, resize};

/// Mean and standard deviation of ImageNet's pixels in `[0, 1]`, as red, green, blue.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Of every norm: ten times below PyTorch's default.
const NORM_EPS: f64 = 1e-6;

/// Tokens that pass through the network at once, if they are not one image.
const MAX_TOKENS_AT_ONCE: usize = 4096;

/// Features of some images, after the last norm.
#[derive(Debug, Clone)]
pub struct DinoV2Features {
    /// A token per patch, row by row: `(B, rows columns, D)`, `f32`.
    pub patch_tokens: Tensor,
    /// A token per image: `(B, D)`, `f32`.
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
/// Multiplies in the type of its weights, sums in `f32`; takes and gives `f32`, a few images at a time.
/// Frozen: on the CPU, images that depend on a variable are an error, so no gradient is lost silently.
#[derive(Debug, Clone)]
pub struct DinoV2 {
    patch_embed: Conv2d,
    /// With its position: `(1, 1, D)`.
    class_token: Tensor,
    registers: Option<Tensor>,
    /// Of the class token `(1, 1, D)`, and of the patches `(D, grid, grid)`, in `f32`.
    positions: (Tensor, Tensor),
    blocks: Vec<Block>,
    norm: LayerNorm,
    cfg: DinoV2Config,
    /// Of the numbers between layers.
    dtype: DType,
}

impl DinoV2 {
    /// Builds the network; `vb` is where `cls_token` is.
    ///
    /// The published files also hold a `mask_token`, which only training uses: it is not asked for.
    ///
    /// # Errors
    ///
    /// A configuration that [`DinoV2Config::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (width, patch, grid) = (cfg.hidden_size, cfg.patch_size, cfg.position_grid);
        let window = Window2d::new((patch, patch), patch, (0, 0));
        let ends = unrounded(&vb);
        let positions = ends.get((1, 1 + grid * grid, width), "pos_embed")?;
        let class_position = positions.narrow(1, 0, 1)?;
        let patch_positions = positions.get(0)?.narrow(0, 1, grid * grid)?.t()?.to_dtype(DType::F32)?;
        let registers = match cfg.num_registers {
            0 => None,
            n => Some(ends.get((1, n, width), "register_tokens")?),
        };
        let blocks = vb.pp("blocks");
        Ok(Self {
            patch_embed: Conv2d::new(3, width, window, ends.pp("patch_embed.proj"))?,
            class_token: (ends.get((1, 1, width), "cls_token")? + &class_position)?,
            registers,
            positions: (class_position.to_dtype(DType::F32)?, patch_positions.reshape((width, grid, grid))?),
            blocks: (0..cfg.num_blocks).map(|i| Block::new(cfg, blocks.pp(i))).collect::<Result<_>>()?,
            norm: LayerNorm::new(width, NORM_EPS, ends.pp("norm"))?,
            cfg: cfg.clone(),
            dtype: stream_dtype(&vb),
        })
    }

    /// Builds the network in `dtype` from a source that holds its tensors and no others but a `mask_token`.
    ///
    /// # Errors
    ///
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        cfg: &DinoV2Config,
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        load_network(source, dtype, device, |name| name != "mask_token", |vb| Self::new(cfg, vb))
    }

    /// The configuration that it was built with.
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
        let [rows, columns] = [h, w].map(|side| side.saturating_mul(224) / 256);
        if let Err(error) = self.grid((rows, columns)) {
            bail!("pixels of {h} x {w} become {rows} x {columns}: {error}");
        }
        let planes = pixels.to_dtype(DType::F32)?.reshape((b * 3, h, w))?;
        let ys = resize(&planes, (rows, columns), Interpolation::Cubic)?.reshape((b, 3, rows, columns))?;
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
        let positions = self.patch_positions(grid)?.to_dtype(self.dtype)?;
        let images = images.permute((0, 2, 3, 1))?.contiguous()?; // (B, H, W, 3)
        let at_once = (MAX_TOKENS_AT_ONCE / (grid.0 * grid.1)).max(1);
        let mut all = Vec::new();
        for first in (0..b).step_by(at_once) {
            let some = images.narrow(0, first, at_once.min(b - first))?.to_dtype(self.dtype)?;
            all.push(self.tokens(&some, &positions)?.to_dtype(DType::F32)?);
        }
        let tokens = Tensor::cat(&all, 0)?; // (B, 1 + registers + patches, D)
        Ok(DinoV2Features {
            patch_tokens: tokens.narrow(1, 1 + self.cfg.num_registers, grid.0 * grid.1)?.contiguous()?,
            class_token: tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            grid,
        })
    }

    /// The positions on a grid, `(1, 1 + rows columns, D)` in `f32`, the class token's first.
    ///
    /// # Errors
    ///
    /// A grid without patches.
    pub fn positions(&self, grid: (usize, usize)) -> Result<Tensor> {
        Tensor::cat(&[&self.positions.0, &self.patch_positions(grid)?], 1)
    }

    /// Rows and columns of patches in an image of this height and width.
    fn grid(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let patch = self.cfg.patch_size;
        if height * width == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            bail!("expected sides that are multiples of {patch}, got {height} x {width}");
        }
        Ok((height / patch, width / patch))
    }

    fn patch_positions(&self, grid: (usize, usize)) -> Result<Tensor> {
        let planes = resize(&self.positions.1, grid, Interpolation::CubicAntialias)?; // (D, rows, columns)
        planes.flatten_from(1)?.t()?.unsqueeze(0) // (1, rows columns, D)
    }

    /// `(B, H, W, 3) -> (B, 1 + registers + patches, D)`
    fn tokens(&self, images: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let patches = self.patch_embed.forward(images)?.flatten(1, 2)?.broadcast_add(positions)?;
        let (b, _, width) = patches.dims3()?;
        let mut tokens = vec![self.class_token.broadcast_as((b, 1, width))?];
        if let Some(registers) = &self.registers {
            tokens.push(registers.broadcast_as((b, self.cfg.num_registers, width))?);
        }
        tokens.push(patches);
        let mut xs = Tensor::cat(&tokens, 1)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        self.norm.forward(&xs)
    }
}

/// Transformer block: `(B, L, D) -> (B, L, D)`.
///
/// ```text
/// x += gamma_1 attn(norm1(x)),   x += gamma_2 mlp(norm2(x))
/// ```
///
/// Both `gamma` (`ls1`, `ls2`) are multiplied into the weights before them.
#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
}

impl Block {
    fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        let width = cfg.hidden_size;
        let proj = scaled(width, width, &unrounded(&vb).get(width, "ls1.gamma")?, vb.pp("attn.proj"))?;
        Ok(Self {
            norm1: LayerNorm::new(width, NORM_EPS, vb.pp("norm1"))?,
            qkv: Linear::new(width, 3 * width, vb.pp("attn.qkv"))?.rounded(),
            proj,
            norm2: LayerNorm::new(width, NORM_EPS, vb.pp("norm2"))?,
            mlp: Mlp::new(cfg, vb)?,
            num_heads: cfg.num_heads,
        })
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?)?;
        let xs = self.proj.forward_add(&attention(&qkv, self.num_heads)?, xs)?;
        let normed = self.norm2.forward(&xs)?;
        match &self.mlp {
            Mlp::Gelu { fc1, fc2 } => fc2.forward_add(&fc1.forward(&normed)?, &xs),
            Mlp::SwiGlu { gate, up, down } => {
                down.forward_add(&(gate.forward(&normed)? * up.forward(&normed)?)?, &xs)
            }
        }
    }
}

/// The feed-forward layer; activations belong to `fc1` and `gate`.
#[derive(Debug, Clone)]
enum Mlp {
    Gelu { fc1: Linear, fc2: Linear },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Mlp {
    /// `vb` is the block's.
    fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        let (width, mlp) = (cfg.hidden_size, vb.pp("mlp"));
        let gamma = unrounded(&vb).get(width, "ls2.gamma")?;
        match cfg.mlp {
            DinoV2Mlp::Gelu => Ok(Self::Gelu {
                fc1: Linear::new(width, 4 * width, mlp.pp("fc1"))?.then(Activation::Gelu).rounded(),
                fc2: scaled(4 * width, width, &gamma, mlp.pp("fc2"))?,
            }),
            DinoV2Mlp::SwiGlu => {
                let inner = swiglu_width(width);
                let (weight, bias) =
                    (mlp.get((2 * inner, width), "w12.weight")?, unrounded(&mlp).get(2 * inner, "w12.bias")?);
                let half = |first| {
                    Linear::of(&weight.narrow(0, first, inner)?, Some(&bias.narrow(0, first, inner)?))
                };
                Ok(Self::SwiGlu {
                    gate: half(0)?.then(Activation::Silu).rounded(),
                    up: half(inner)?.rounded(),
                    down: scaled(inner, width, &gamma, mlp.pp("w3"))?,
                })
            }
        }
    }
}

/// A linear layer whose outputs are multiplied by the `out` elements of `gamma`.
fn scaled(inp: usize, out: usize, gamma: &Tensor, vb: VarBuilder) -> Result<Linear> {
    let exact = unrounded(&vb);
    let (weight, bias) = (exact.get((out, inp), "weight")?, exact.get(out, "bias")?);
    let weight = weight.broadcast_mul(&gamma.unsqueeze(1)?)?.to_dtype(vb.dtype())?;
    Linear::of(&weight, Some(&(bias * gamma)?))
}

/// Sizes of a DINOv2 vision transformer.
///
/// The presets are the published ones, patch 14, trained on 518 px; [`with_registers`](Self::with_registers)
/// gives their variants with register tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DinoV2Config {
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_blocks: usize,
    /// Attention heads; they divide `hidden_size`.
    pub num_heads: usize,
    /// Pixels along a side of a patch.
    pub patch_size: usize,
    /// Patches along a side of the square that the stored positions are for.
    pub position_grid: usize,
    /// Register tokens: 4 in the published variants that have them, otherwise 0.
    pub num_registers: usize,
    /// The feed-forward layer of a block.
    pub mlp: DinoV2Mlp,
}

/// The feed-forward layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DinoV2Mlp {
    /// Exact GELU, four times as wide (`mlp.fc1`, `mlp.fc2`).
    Gelu,
    /// SwiGLU, 8/3 times as wide, rounded up to a multiple of 8 (`mlp.w12`, `mlp.w3`).
    SwiGlu,
}

/// Hidden width of the SwiGLU feed-forward layer: two thirds of four times the width, rounded up to a multiple of 8.
fn swiglu_width(hidden_size: usize) -> usize {
    (hidden_size * 4 * 2 / 3).next_multiple_of(8)
}

impl DinoV2Config {
    /// ViT-S/14, `dinov2_vits14_pretrain.pth`.
    pub fn vit_s() -> Self {
        Self {
            hidden_size: 384,
            num_blocks: 12,
            num_heads: 6,
            patch_size: 14,
            position_grid: 37,
            num_registers: 0,
            mlp: DinoV2Mlp::Gelu,
        }
    }

    /// ViT-B/14, `dinov2_vitb14_pretrain.pth`: the one that DDT is aligned with.
    pub fn vit_b() -> Self {
        Self { hidden_size: 768, num_heads: 12, ..Self::vit_s() }
    }

    /// ViT-L/14, `dinov2_vitl14_pretrain.pth`.
    pub fn vit_l() -> Self {
        Self { hidden_size: 1024, num_blocks: 24, num_heads: 16, ..Self::vit_s() }
    }

    /// ViT-g/14, `dinov2_vitg14_pretrain.pth`.
    pub fn vit_g() -> Self {
        Self { hidden_size: 1536, num_blocks: 40, num_heads: 24, mlp: DinoV2Mlp::SwiGlu, ..Self::vit_s() }
    }

    /// The same with four register tokens, `dinov2_vit*14_reg4_pretrain.pth`.
    pub fn with_registers(self) -> Self {
        Self { num_registers: 4, ..self }
    }

    /// Refuses sizes that no transformer has.
    ///
    /// # Errors
    ///
    /// A size of zero or beyond 65536, and heads that do not divide the width.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_blocks", self.num_blocks),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("position_grid", self.position_grid),
            ("num_registers", self.num_registers + 1),
        ];
        for (name, size) in sizes {
            if !(1..=65536).contains(&size) {
                bail!("{name}: expected at least 1 and at most 65536, got {size}");
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            bail!("expected num_heads to divide hidden_size {}, got {}", self.hidden_size, self.num_heads);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_others_are_not() {
        for cfg in [
            DinoV2Config::vit_s(),
            DinoV2Config::vit_b(),
            DinoV2Config::vit_l(),
            DinoV2Config::vit_g().with_registers(),
        ] {
            cfg.validate().unwrap();
        }
        assert_eq!(swiglu_width(DinoV2Config::vit_g().hidden_size), 4096);
        let wrong = [
            DinoV2Config { num_heads: 5, ..DinoV2Config::vit_s() },
            DinoV2Config { num_heads: 0, ..DinoV2Config::vit_s() },
            DinoV2Config { position_grid: 1 << 40, ..DinoV2Config::vit_s() },
        ];
        for cfg in wrong {
            assert!(cfg.validate().is_err(), "{cfg:?}");
        }
    }
}
