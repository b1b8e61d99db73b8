//! Builds the network of a configuration, in any form, and lists the names and shapes of its parameters.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use ddt_blocks::{Form, Frozen, Fused, Plain, sincos_positions};

use crate::{
    baselines::{DdtDagger, ImprovedSit, MixerDdt, Repa, Sit},
    ddt::Ddt,
    dit_dh::{DitDh, rope_buffers},
    init::{POSITIONS, parameter_shapes},
    network::VelocityNetwork,
    network_config::{Family, NetworkConfig, TokenMixer},
};

impl NetworkConfig {
    /// Builds the definition of the network: layer by layer, differentiable, in any dtype. `vb` gives parameters
    /// under the names published for its family.
    ///
    /// # Errors
    /// When the configuration makes no network ([`validate`](Self::validate)) or `vb` lacks a parameter.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn VelocityNetwork>> {
        self.build_as::<Plain>(vb)
    }

    /// Builds the form for training on the CPU, with f32 weights, that computes in `vb`'s dtype, f32 or bf16: DDT's and
    /// DiT^DH's blocks are one operation each. SiT's blocks have no such form and stay as they are.
    ///
    /// # Errors
    /// As [`build`](Self::build), and for DDT's or DiT^DH's blocks with other weights or on another device.
    pub fn build_fused(&self, vb: VarBuilder) -> Result<Box<dyn VelocityNetwork>> {
        self.build_as::<Fused>(vb)
    }

    /// Builds the form for sampling in f32 or bf16 on the CPU: the weights of DDT's and DiT^DH's layers are packed
    /// and the originals dropped. SiT's blocks have no such form and stay as they are.
    ///
    /// # Errors
    /// As [`build`](Self::build), and for DDT's layers in another dtype or on another device.
    pub fn build_frozen(&self, vb: VarBuilder) -> Result<Box<dyn VelocityNetwork>> {
        self.build_as::<Frozen>(vb)
    }

    fn build_as<F: Form>(&self, vb: VarBuilder) -> Result<Box<dyn VelocityNetwork>> {
        self.validate().map_err(candle_core::Error::wrap)?;
        Ok(match (self.family, self.decoder_mixer) {
            (Family::Ddt, TokenMixer::Attention) => Box::new(Ddt::new(&self.sizes, vb)?.into_form::<F>()?),
            (Family::Ddt, TokenMixer::Conv3x3 | TokenMixer::Mlp) => {
                Box::new(MixerDdt::new(self, vb)?.into_form::<F>()?)
            }
            (Family::ImprovedSit, _) => Box::new(ImprovedSit::new(&self.sizes, vb)?.into_form::<F>()?),
            (Family::DdtDagger, _) => Box::new(DdtDagger::new(self, vb)?),
            (Family::Sit, _) => Box::new(Sit::new(self, vb)?),
            (Family::Repa, _) => Box::new(Repa::new(self, vb)?),
            (Family::DitDh, _) => Box::new(DitDh::new(self, vb)?.into_form::<F>()?),
        })
    }

    /// Names and shapes of the network's parameters, sorted by name; no memory is taken for them.
    ///
    /// # Errors
    /// When the configuration makes no network.
    pub fn parameter_shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        parameter_shapes(|vb| self.build(vb))
    }

    /// The tensors in a file that are no parameters: SiT's positions and DiT^DH's rotary tables, which the network
    /// computes.
    ///
    /// # Errors
    /// When the configuration makes no network.
    pub fn fixed_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let grid_side = self.grid_side.filter(|_| self.family.has_sit_blocks());
        let table = |side| Ok((POSITIONS.to_owned(), sincos_positions(self.sizes.hidden_size, side)?));
        let positions = grid_side.into_iter().map(table).collect::<Result<Vec<_>>>()?;
        Ok(positions.into_iter().chain(rope_buffers(self)?).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in a file of the preset, positions included.
    fn count(name: &str) -> usize {
        let cfg = NetworkConfig::preset(name).unwrap();
        let fixed: usize = cfg.fixed_tensors().unwrap().values().map(|it| it.elem_count()).sum();
        cfg.parameter_shapes().unwrap().values().map(|it| it.iter().product::<usize>()).sum::<usize>() + fixed
    }

    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (name, expected) in [
            ("ddt-b2", 130_262_800),
            ("ddt-l2", 457_648_144),
            ("ddt-xl2", 674_646_352),
            ("improved-sit-b2", 130_249_744),
            ("improved-sit-l2", 457_630_736),
            ("improved-repa-xl2", 674_626_768),
            ("sit-b2", 130_512_416),
            ("sit-l2", 458_102_816),
            ("sit-xl2", 675_129_632),
        ] {
            assert_eq!(count(name), expected, "{name}");
        }
        // A split moves blocks, it adds none.
        assert_eq!(count("ddt-b2-4en8de"), count("ddt-b2"));
        // REPA: half the output channels, and the head.
        let head = (768 * 2048 + 2048) + (2048 * 2048 + 2048) + (2048 * 768 + 768);
        assert_eq!(count("repa-b2"), count("sit-b2") - 16 * (768 + 1) + head);
        // Attention's 4 D^2 + D + 2 K numbers give way to 9 D^2 + D, or to the MLP's 3 D F.
        let attention = 4 * 768 * 768 + 768 + 2 * 64;
        assert_eq!(count("ddt-b2-8en4de-conv3x3"), count("ddt-b2") + 4 * (9 * 768 * 768 + 768 - attention));
        assert_eq!(count("ddt-b2-8en4de-mlp"), count("ddt-b2") + 4 * (3 * 768 * 2048 - attention));
        // DDT†: SiT with a second embedder and one latent's channels.
        assert_eq!(count("ddt-dagger-b2-8en4de"), count("sit-b2") - 16 * (768 + 1) + 16 * 768 + 768);
    }
}
