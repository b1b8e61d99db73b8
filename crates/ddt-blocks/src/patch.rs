//! Latents to tokens, and tokens to patches of velocity.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use ddt_kernels::ModulationSource;

use crate::{
    attention::RmsNorm,
    form::Form,
    linear::{Linear, ZEROS, xavier_uniform},
};

/// Cuts a latent into patches: `(B, C, H, W) -> (B, L, C P^2)`.
///
/// Elements of a patch are ordered channel, row, column; tokens are in row-major order.
///
/// # Errors
/// When `H` or `W` is not a positive multiple of `patch_size`.
pub fn patchify(xs: &Tensor, patch_size: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    let p = patch_size;
    if p == 0 || h == 0 || w == 0 || !h.is_multiple_of(p) || !w.is_multiple_of(p) {
        bail!("expected (B, C, H, W) with H and W positive multiples of patch {p}, got {:?}", xs.dims());
    }
    xs.reshape(&[b, c, h / p, p, w / p, p][..])?
        .permute(&[0, 2, 4, 1, 3, 5][..])? // (B, H/P, W/P, C, P, P)
        .reshape((b, (h / p) * (w / p), c * p * p)) // (B, L, C P^2)
}

/// Undoes [`patchify`]: `(B, L, C P^2) -> (B, C, H, W)` for `size = (H, W)`.
///
/// # Errors
/// When the tokens do not fill the size.
pub fn unpatchify(tokens: &Tensor, patch_size: usize, size: (usize, usize)) -> Result<Tensor> {
    let (b, l, patch_dim) = tokens.dims3()?;
    let (p, (h, w)) = (patch_size, size);
    if p == 0
        || !h.is_multiple_of(p)
        || !w.is_multiple_of(p)
        || l != (h / p) * (w / p)
        || !patch_dim.is_multiple_of(p * p)
    {
        bail!("expected (B, {h}*{w}/{p}^2, C*{p}^2), got {:?}", tokens.dims());
    }
    let c = patch_dim / (p * p);
    tokens
        .reshape(&[b, h / p, w / p, c, p, p][..])?
        .permute(&[0, 3, 1, 4, 2, 5][..])? // (B, C, H/P, P, W/P, P)
        .reshape((b, c, h, w))
}

/// [`unpatchify`] for patches whose elements are ordered row, column, channel, as SiT's last layer has them.
///
/// # Shapes
/// `(B, L, P^2 C) -> (B, C, H, W)` for `size = (H, W)`.
///
/// # Errors
/// When the tokens do not fill the size.
pub fn unpatchify_channel_last(tokens: &Tensor, patch_size: usize, size: (usize, usize)) -> Result<Tensor> {
    let (b, l, width) = tokens.dims3()?;
    let pixels = patch_size * patch_size;
    if pixels == 0 || !width.is_multiple_of(pixels) {
        bail!("expected (B, L, C P^2) with P = {patch_size}, got {:?}", tokens.dims());
    }
    let channel_first = tokens.reshape((b, l, pixels, width / pixels))?.transpose(2, 3)?; // (B, L, C, P^2)
    unpatchify(&channel_first.reshape((b, l, width))?, patch_size, size)
}

/// Patch embedder: a linear layer on patches.
///
/// # Shapes
/// `xs: (B, C, H, W) -> (B, L, D)`.
#[derive(Debug, Clone)]
pub struct PatchEmbed<L = Linear> {
    proj: L,
    patch_size: usize,
}

impl PatchEmbed {
    /// Parameters under `proj`: Xavier-uniform weight, zero bias.
    pub fn new(in_channels: usize, patch_size: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let patch_dim = in_channels * patch_size * patch_size;
        Ok(Self { proj: Linear::xavier(patch_dim, hidden_size, vb.pp("proj"))?, patch_size })
    }

    /// The same layer whose weight is that of a convolution, `(D, C, P, P)`: SiT's and DiT^DH's.
    pub fn convolution(
        in_channels: usize,
        patch_size: usize,
        hidden_size: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (c, p, vb) = (in_channels, patch_size, vb.pp("proj"));
        let xavier = xavier_uniform(c * p * p, hidden_size);
        let weight = vb.get_with_hints((hidden_size, c, p, p), "weight", xavier)?;
        let weight = weight.reshape((hidden_size, c * p * p))?;
        let bias = vb.get_with_hints(hidden_size, "bias", ZEROS)?;
        Ok(Self { proj: Linear::from_tensors(weight, Some(bias)), patch_size })
    }

    /// The same layer for a network of another form.
    pub fn into_form<F: Form>(self) -> Result<PatchEmbed<F::Linear>> {
        Ok(PatchEmbed { proj: F::linear(self.proj)?, patch_size: self.patch_size })
    }
}

impl<L: Module> Module for PatchEmbed<L> {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.proj.forward(&patchify(xs, self.patch_size)?)
    }
}

/// Final layer: `y = linear(norm(x) (1 + scale) + shift)`. The norm is a LayerNorm without affine parameters, DiT^DH's
/// an RMSNorm.
///
/// Both linear layers start at zero, so an untrained network predicts a zero velocity.
#[derive(Debug, Clone)]
pub struct FinalLayer<L = Linear> {
    /// RMSNorm; `None` is LayerNorm.
    norm: Option<RmsNorm>,
    linear: L,
    ada_ln: L,
}

impl FinalLayer {
    /// DDT's: parameters `linear` and `adaLN_modulation.0`; `patch_dim` is `C P^2`.
    pub fn new(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(None, hidden_size, patch_dim, "0", vb)
    }

    /// SiT's: the same layers, with `adaLN_modulation.1` for the second, because `adaLN_modulation.0` is a SiLU
    /// that the caller applies to the condition.
    pub fn sit(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        Self::build(None, hidden_size, patch_dim, "1", vb)
    }

    /// DiT^DH's: SiT's layers, and the norm's weight `norm_final`.
    pub fn dit_dh(hidden_size: usize, patch_dim: usize, vb: VarBuilder) -> Result<Self> {
        let norm = RmsNorm::new(hidden_size, vb.pp("norm_final"))?;
        Self::build(Some(norm), hidden_size, patch_dim, "1", vb)
    }

    fn build(
        norm: Option<RmsNorm>,
        hidden_size: usize,
        patch_dim: usize,
        modulation: &str,
        vb: VarBuilder,
    ) -> Result<Self> {
        let modulation = vb.pp("adaLN_modulation").pp(modulation);
        Ok(Self {
            norm,
            linear: Linear::zeros(hidden_size, patch_dim, vb.pp("linear"))?,
            ada_ln: Linear::zeros(hidden_size, 2 * hidden_size, modulation)?,
        })
    }

    /// The same layer for a network of another form.
    pub fn into_form<F: Form>(self) -> Result<FinalLayer<F::Linear>> {
        let norm = self.norm.map(|it| F::tensor(it.weight().clone()).map(RmsNorm::of)).transpose()?;
        Ok(FinalLayer { norm, linear: F::linear(self.linear)?, ada_ln: F::linear(self.ada_ln)? })
    }
}

impl<L: Module> FinalLayer<L> {
    const EPS: f64 = 1e-6;

    /// Shift, then scale, from the condition: `(B, 1 or L, D) -> (B, 1 or L, 2D)`.
    pub fn shift_scale(&self, condition: &Tensor) -> Result<Tensor> {
        self.ada_ln.forward(condition)
    }

    /// # Shapes
    /// `xs: (B, L, D) -> (B, L, C P^2)`.
    pub fn forward<'a>(&self, xs: &Tensor, shift_scale: impl Into<ModulationSource<'a>>) -> Result<Tensor> {
        self.linear.forward(&match &self.norm {
            None => ddt_kernels::layer_norm_modulate(xs, shift_scale, Self::EPS)?,
            Some(norm) => norm.forward_modulated(xs, shift_scale)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn patches_are_channel_major_and_undone() -> Result<()> {
        let xs = Tensor::arange(0f32, 2.0 * 3.0 * 4.0 * 6.0, &Device::Cpu)?.reshape((2, 3, 4, 6))?;
        let tokens = patchify(&xs, 2)?;
        assert_eq!(tokens.dims(), &[2, 6, 12]);
        let second: Vec<f32> = tokens.get(0)?.get(1)?.to_vec1()?;
        assert_eq!(second, [2., 3., 8., 9., 26., 27., 32., 33., 50., 51., 56., 57.]);
        let back = unpatchify(&tokens, 2, (4, 6))?;
        assert_eq!((back - &xs)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        let channel_last = tokens.reshape((2, 6, 3, 4))?.transpose(2, 3)?.reshape((2, 6, 12))?;
        let back = unpatchify_channel_last(&channel_last, 2, (4, 6))?;
        assert_eq!((back - xs)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        Ok(())
    }

    #[test]
    fn sizes_the_patch_does_not_divide_are_refused() -> Result<()> {
        let xs = Tensor::zeros((1, 1, 4, 5), candle_core::DType::F32, &Device::Cpu)?;
        assert!(patchify(&xs, 2).unwrap_err().to_string().contains("multiples of patch 2"));
        assert!(patchify(&xs, 0).is_err());
        Ok(())
    }
}
