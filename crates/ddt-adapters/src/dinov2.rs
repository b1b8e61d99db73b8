//! DINOv2, a frozen vision transformer whose patch tokens DDT's encoder is aligned with.
//!
//! Follows [`vision_transformer.py`] of DINOv2 and keeps the names of its files.
//!
//! [`vision_transformer.py`]: https://github.com/facebookresearch/dinov2/blob/112792f1667374eb2253cc82bca19d101655356f/dinov2/models/vision_transformer.py

use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_files::TensorSource;
use ddt_kernels::Window2d;
use serde::{Deserialize, Serialize};

use crate::layers::{Conv2d, LayerNorm, stream_dtype, unrounded};
use crate::load::{LoadError, check_sizes, load_network};
use crate::resize::{Interpolation, resize};
use crate::vit::{Block, BlockNames, BlockSizes, MlpNames};

/// Mean and standard deviation of ImageNet's pixels in `[0, 1]`, as red, green, blue.
pub(crate) const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub(crate) const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Epsilon of every norm: a tenth of PyTorch's default.
const NORM_EPS: f64 = 1e-6;

/// Tokens that pass through the network at once, if they are not one image.
const MAX_TOKENS_AT_ONCE: usize = 4096;

/// Names of the tensors in a file.
struct Names {
    class_token: &'static str,
    registers: &'static str,
    mask_token: &'static str,
    positions: &'static str,
    patch_embed: &'static str,
    blocks: &'static str,
    /// Names within a block; `mlp` has those of a GELU MLP.
    block: BlockNames,
    swiglu: [&'static str; 2],
    norm: &'static str,
}

/// Names of DINOv2's own files.
const PUBLISHED: Names = Names {
    class_token: "cls_token",
    registers: "register_tokens",
    mask_token: "mask_token",
    positions: "pos_embed",
    patch_embed: "patch_embed.proj",
    blocks: "blocks",
    block: BlockNames {
        norm1: "norm1",
        qkv: &["attn.qkv"],
        proj: "attn.proj",
        norm2: "norm2",
        mlp: MlpNames::Gelu(["mlp.fc1", "mlp.fc2"]),
        scales: Some(["ls1.gamma", "ls2.gamma"]),
    },
    swiglu: ["mlp.w12", "mlp.w3"],
    norm: "norm",
};

/// Names of transformers' files.
const HUGGING_FACE: Names = Names {
    class_token: "embeddings.cls_token",
    registers: "embeddings.register_tokens",
    mask_token: "embeddings.mask_token",
    positions: "embeddings.position_embeddings",
    patch_embed: "embeddings.patch_embeddings.projection",
    blocks: "encoder.layer",
    block: BlockNames {
        norm1: "norm1",
        qkv: &["attention.attention.query", "attention.attention.key", "attention.attention.value"],
        proj: "attention.output.dense",
        norm2: "norm2",
        mlp: MlpNames::Gelu(["mlp.fc1", "mlp.fc2"]),
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    },
    swiglu: ["mlp.weights_in", "mlp.weights_out"],
    norm: "layernorm",
};

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
    /// Class token plus its position, `(1, 1, D)`.
    class_token: Tensor,
    registers: Option<Tensor>,
    /// Positions of the class token, `(1, 1, D)`, and of the patches, `(D, grid, grid)`, in `f32`.
    positions: (Tensor, Tensor),
    blocks: Vec<Block>,
    norm: LayerNorm,
    cfg: DinoV2Config,
    /// Dtype of the tensors between layers.
    dtype: DType,
}

impl DinoV2 {
    /// Builds the network; `vb` is where `cls_token` is.
    ///
    /// The published files also hold a `mask_token`, which only training uses: it is not asked for.
    ///
    /// # Errors
    /// A configuration that [`DinoV2Config::validate`] refuses; the first missing or misshapen tensor.
    pub fn new(cfg: &DinoV2Config, vb: VarBuilder) -> Result<Self> {
        Self::with_names(cfg, &PUBLISHED, vb)
    }

    fn with_names(cfg: &DinoV2Config, names: &Names, vb: VarBuilder) -> Result<Self> {
        cfg.validate()?;
        let (width, patch, grid) = (cfg.hidden_size, cfg.patch_size, cfg.position_grid);
        let window = Window2d::new((patch, patch), patch, (0, 0));
        let ends = unrounded(&vb);
        let positions = ends.get((1, 1 + grid * grid, width), names.positions)?;
        let class_position = positions.narrow(1, 0, 1)?;
        let patch_positions = positions.get(0)?.narrow(0, 1, grid * grid)?.t()?.to_dtype(DType::F32)?;
        let registers = match cfg.num_registers {
            0 => None,
            n => Some(ends.get((1, n, width), names.registers)?),
        };
        let (num_heads, norm_eps) = (cfg.num_heads, NORM_EPS);
        let (mlp, mlp_width) = match cfg.mlp {
            DinoV2Mlp::Gelu => (names.block.mlp, cfg.mlp_ratio * width),
            DinoV2Mlp::SwiGlu => (MlpNames::SwiGlu(names.swiglu), cfg.swiglu_width()),
        };
        let sizes = BlockSizes { width, num_heads, mlp_width, norm_eps };
        let (block, blocks) = (BlockNames { mlp, ..names.block }, vb.pp(names.blocks));
        let blocks = (0..cfg.num_blocks).map(|i| Block::new(&sizes, &block, blocks.pp(i)));
        Ok(Self {
            patch_embed: Conv2d::new(3, width, window, ends.pp(names.patch_embed))?,
            class_token: (ends.get((1, 1, width), names.class_token)? + &class_position)?,
            registers,
            positions: (class_position.to_dtype(DType::F32)?, patch_positions.reshape((width, grid, grid))?),
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::new(width, NORM_EPS, ends.pp(names.norm))?,
            cfg: cfg.clone(),
            dtype: stream_dtype(&vb),
        })
    }

    /// Builds the network in `dtype` from a source that holds its tensors and no others but a `mask_token`, under
    /// the names of DINOv2's own files or of Hugging Face's.
    ///
    /// # Errors
    /// [`FileError::Mismatch`](ddt_files::FileError::Mismatch) with every missing,
    /// unexpected and misshapen name.
    pub fn load(
        cfg: &DinoV2Config,
        source: &(impl TensorSource + Sync + ?Sized),
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let is_hugging_face = source.info(HUGGING_FACE.positions).is_some();
        let names = if is_hugging_face { &HUGGING_FACE } else { &PUBLISHED };
        let wanted = |name: &str| name != names.mask_token;
        load_network(source, dtype, device, wanted, |vb| Self::with_names(cfg, names, vb))
    }

    /// The same network without weight and bias in its last norm.
    pub(crate) fn with_plain_norm(self) -> Result<Self> {
        Ok(Self { norm: self.norm.plain()?, ..self })
    }

    /// The configuration that it was built with.
    pub fn config(&self) -> &DinoV2Config {
        &self.cfg
    }

    /// Features of images as they are stored: [`preprocess`](Self::preprocess), then
    /// [`forward`](Self::forward).
    ///
    /// # Shapes
    /// `pixels: (B, 3, H, W)` in `[0, 1]`; see [`DinoV2Features`].
    ///
    /// # Errors
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
    /// `pixels: (B, 3, H, W)` in `[0, 1] -> (B, 3, H', W')`, `f32`
    ///
    /// # Errors
    /// Any other shape, and sides whose resized length is not a multiple of the patch.
    pub fn preprocess(&self, pixels: &Tensor) -> Result<Tensor> {
        let &[_, 3, h, w] = pixels.dims() else {
            bail!("expected pixels (B, 3, H, W), got {:?}", pixels.shape());
        };
        let [rows, columns] = [h, w].map(|side| side.saturating_mul(224) / 256);
        if let Err(error) = self.grid((rows, columns)) {
            bail!("pixels of {h} x {w} become {rows} x {columns}: {error}");
        }
        normalised(pixels, (rows, columns))
    }

    /// Features of normalised images of any size in whole patches.
    ///
    /// # Shapes
    /// `images: (B, 3, H, W)` with sides that are multiples of the patch; see [`DinoV2Features`].
    ///
    /// # Errors
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

/// Pixels `(B, 3, H, W)` in `[0, 1]`, resized bicubically without antialiasing, less ImageNet's mean and divided by its
/// standard deviation: `(B, 3, to.0, to.1)`, `f32`.
pub(crate) fn normalised(pixels: &Tensor, to: (usize, usize)) -> Result<Tensor> {
    let &[b, 3, h, w] = pixels.dims() else {
        bail!("expected pixels (B, 3, H, W), got {:?}", pixels.shape());
    };
    let planes = pixels.to_dtype(DType::F32)?.reshape((b * 3, h, w))?;
    let ys = resize(&planes, to, Interpolation::Cubic)?.reshape((b, 3, to.0, to.1))?;
    let colours = |values: [f32; 3]| Tensor::new(&values, pixels.device())?.reshape((1, 3, 1, 1));
    ys.broadcast_sub(&colours(MEAN)?)?.broadcast_div(&colours(STD)?)
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
    /// Its width relative to `hidden_size`, before a SwiGLU's factor of 2/3: 4 in the published files.
    #[serde(default = "published_ratio")]
    pub mlp_ratio: usize,
}

fn published_ratio() -> usize {
    4
}

/// The feed-forward layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DinoV2Mlp {
    /// Exact GELU (`mlp.fc1`, `mlp.fc2`).
    Gelu,
    /// SwiGLU, two thirds as wide, rounded up to a multiple of 8 (`mlp.w12`, `mlp.w3`).
    SwiGlu,
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
            mlp_ratio: published_ratio(),
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

    /// Hidden width of a SwiGLU feed-forward layer.
    fn swiglu_width(&self) -> usize {
        (self.hidden_size * self.mlp_ratio * 2 / 3).next_multiple_of(8)
    }

    /// Refuses sizes that no transformer has.
    ///
    /// # Errors
    /// A size of zero or beyond 65536, and heads that do not divide the width.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_blocks", self.num_blocks),
            ("num_heads", self.num_heads),
            ("patch_size", self.patch_size),
            ("position_grid", self.position_grid),
            ("num_registers", self.num_registers + 1),
            ("mlp_ratio", self.mlp_ratio),
        ];
        check_sizes(sizes)?;
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
        assert_eq!(DinoV2Config::vit_g().swiglu_width(), 4096);
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
