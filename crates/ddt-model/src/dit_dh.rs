//! DiT^DH (arXiv:2510.11690): DDT's split with an encoder of narrow blocks and a head of a few wide ones.
//!
//! ```text
//! c = silu(t_emb + y_emb)
//! s = silu(t_emb + encoder_blocks(s_embedder(x) + pos_embed, c))
//! v = final_layer(decoder_blocks(x_embedder(x), p), p),   p = s_projector(s)
//! ```

use candle_core::{Device, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use ddt_blocks::{
    AxialRope2d, Block, ConditionEmbed, FinalLayer, Form, Linear, PatchEmbed, Plain, TransformerBlock,
};
use ddt_kernels::{add_silu, silu};

use crate::{
    ddt::{VelocityDecoder, token_grid},
    init::POSITIONS,
    network::{DecoderModulations, DecoupledNetwork, NoisyInput, VelocityNetwork, run_blocks},
    network_config::NetworkConfig,
};

/// DiT^DH: like a [`Ddt`](crate::Ddt) of two widths, published in the opposite time.
///
/// ```text
/// v(x, t) = -v_DiT^DH(x, 1 - t)
/// ```
///
/// Every modulation has a SiLU of its own, so that a modulation is not linear in the self-condition `s`.
/// Latents have one size, [`NetworkConfig::grid_side`].
#[derive(Debug, Clone)]
pub struct DitDh<F: Form = Plain> {
    cfg: NetworkConfig,
    condition: ConditionEmbed,
    s_embedder: PatchEmbed<F::Linear>,
    /// `(1, L, E)`.
    positions: Option<Tensor>,
    blocks: Vec<F::Block>,
    rope: AxialRope2d,
    /// Projection between the two widths, where they differ.
    s_projector: Option<F::Linear>,
    decoder: VelocityDecoder<F::Block, F::Linear>,
}

impl DitDh {
    /// Parameters under the names of the published checkpoints.
    ///
    /// # Errors
    /// When the configuration makes no network of this family or `vb` lacks a parameter.
    pub fn new(cfg: &NetworkConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let (sizes, Some(own), Some(side)) = (&cfg.sizes, &cfg.dit_dh, cfg.grid_side) else {
            bail!("expected a network of family dit-dh, got {:?}", cfg.family);
        };
        let (e, d, channels) = (sizes.hidden_size, own.decoder_hidden_size, sizes.in_channels);
        let block = |width: usize, heads: usize| {
            let blocks = vb.pp("blocks");
            let (mlp_size, qk_norm) = (own.mlp_size(width), own.qk_norm);
            move |i: usize| Block::dit_dh(width, heads, mlp_size, qk_norm, blocks.pp(i))
        };
        let embed = |width, name| PatchEmbed::convolution(channels, 1, width, vb.pp(name));
        let positions =
            own.positions.then(|| vb.get_with_hints((1, side * side, e), POSITIONS, Init::Const(0.0)));
        let (first, last) = (sizes.num_encoder_blocks, sizes.num_blocks());
        Ok(Self {
            condition: ConditionEmbed::dit_dh(own.num_labels(sizes), e, vb.clone())?,
            s_embedder: embed(e, "s_embedder")?,
            positions: positions.transpose()?,
            blocks: (0..first).map(block(e, sizes.num_heads)).collect::<Result<_>>()?,
            rope: AxialRope2d::rows_first(sizes.head_dim())?,
            s_projector: (e != d).then(|| Linear::new(e, d, vb.pp("s_projector"))).transpose()?,
            decoder: VelocityDecoder::of_positions(
                AxialRope2d::rows_first(own.decoder_head_dim())?,
                embed(d, "x_embedder")?,
                (first..last).map(block(d, own.decoder_num_heads)).collect::<Result<_>>()?,
                FinalLayer::dit_dh(d, channels, vb.pp("final_layer"))?,
            ),
            cfg: cfg.clone(),
        })
    }

    pub(crate) fn into_form<F: Form>(self) -> Result<DitDh<F>> {
        Ok(DitDh {
            cfg: self.cfg,
            condition: self.condition.into_form::<F>()?,
            s_embedder: self.s_embedder.into_form::<F>()?,
            positions: self.positions.map(F::tensor).transpose()?,
            blocks: self.blocks.into_iter().map(F::block).collect::<Result<_>>()?,
            rope: self.rope,
            s_projector: self.s_projector.map(F::linear).transpose()?,
            decoder: self.decoder.into_form::<F>()?,
        })
    }
}

impl<F: Form> DitDh<F> {
    /// `s`, and the output of encoder block `align_layer`.
    fn encode_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let NoisyInput { x_t, t, labels } = input;
        self.check_size(x_t)?;
        let (t_emb, y_emb) = self.condition.forward(&t.affine(-1.0, 1.0)?, labels)?;
        // The condition's own SiLU, then that of every modulation.
        let c = silu(&add_silu(&y_emb, &t_emb)?)?; // (B, 1, E)
        let mut xs = self.s_embedder.forward(&x_t.to_dtype(c.dtype())?)?; // (B, L, E)
        if let Some(positions) = &self.positions {
            xs = xs.broadcast_add(&positions.to_dtype(xs.dtype())?)?;
        }
        let grid = token_grid(1, self.rope, x_t)?;
        let (xs, features) = run_blocks(self.blocks.iter(), xs, align_layer, |block, xs| {
            block.forward(xs, &block.modulation(&c)?, &grid)
        })?;
        Ok((add_silu(&xs, &t_emb)?, features))
    }

    fn check_size(&self, x_t: &Tensor) -> Result<()> {
        let (_, _, h, w) = x_t.dims4()?;
        let side = self.cfg.grid_side.unwrap_or_default();
        if (h, w) != (side, side) {
            bail!("expected latents of {side} x {side}, whose positions this network knows, got {h} x {w}");
        }
        Ok(())
    }
}

impl<F: Form> VelocityNetwork for DitDh<F> {
    fn config(&self) -> &NetworkConfig {
        &self.cfg
    }

    fn forward_with_features(&self, input: NoisyInput<'_>, align_layer: usize) -> Result<(Tensor, Tensor)> {
        let (s, features) = self.encode_with_features(input, align_layer)?;
        Ok((self.decode(input.x_t, &self.modulations(&s)?)?, features))
    }

    fn decoupled(&self) -> Option<&dyn DecoupledNetwork> {
        Some(self)
    }
}

impl<F: Form> DecoupledNetwork for DitDh<F> {
    fn encode(&self, x_t: &Tensor, t: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.encode_with_features(NoisyInput { x_t, t, labels }, 0)?.0)
    }

    fn modulations(&self, s: &Tensor) -> Result<DecoderModulations> {
        let projected = self.s_projector.as_ref().map(|it| it.forward(s)).transpose()?;
        self.decoder.modulations(&silu(projected.as_ref().unwrap_or(s))?)
    }

    fn decode(&self, x_t: &Tensor, modulations: &DecoderModulations) -> Result<Tensor> {
        self.check_size(x_t)?;
        self.decoder.forward_cached(x_t, modulations)?.neg()
    }
}

/// The rotary tables that published files carry, `(L, K)` each: every angle of [`AxialRope2d::rows_first`] twice.
pub(crate) fn rope_buffers(cfg: &NetworkConfig) -> Result<Vec<(String, Tensor)>> {
    let (Some(own), Some(side)) = (&cfg.dit_dh, cfg.grid_side) else { return Ok(Vec::new()) };
    let mut buffers = Vec::new();
    for (half, head_dim) in [("enc", cfg.sizes.head_dim()), ("dec", own.decoder_head_dim())] {
        let table = AxialRope2d::rows_first(head_dim)?.table(side, side, &Device::Cpu)?;
        for (name, angles) in [("cos", table.cos()), ("sin", table.sin())] {
            let twice = Tensor::stack(&[angles, angles], 2)?.flatten_from(1)?;
            buffers.push((format!("{half}_feat_rope.freqs_{name}"), twice));
        }
    }
    Ok(buffers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DitDhConfig;

    #[test]
    fn published_sizes_have_the_published_number_of_parameters() {
        // Of the published sums, the tables of "no class" included and the rotary buffers not.
        for (name, expected) in [("ditdh-s-256", 196_455_764), ("ditdh-xl-256", 838_675_796)] {
            let cfg = NetworkConfig::preset(name).unwrap();
            let count: usize =
                cfg.parameter_shapes().unwrap().values().map(|it| it.iter().product::<usize>()).sum();
            assert_eq!(count, expected, "{name}");
        }
        assert_eq!(DitDhConfig::PUBLISHED.decoder_head_dim(), 128);
    }
}
