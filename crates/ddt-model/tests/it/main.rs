//! The network as its users meet it: against golden outputs, in training, when sharing, on disk.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use ddt_flow::noise_batch;
use ddt_model::{Ddt, DdtConfig, NetworkConfig, VelocityNetwork};

mod families;
mod files;
mod goldens;
mod gradients;
mod sharing;

/// A small network.
pub(crate) fn sizes() -> DdtConfig {
    DdtConfig {
        in_channels: 2,
        patch_size: 2,
        hidden_size: 16,
        num_heads: 2,
        num_encoder_blocks: 2,
        num_decoder_blocks: 2,
        num_classes: 5,
    }
}

/// Trainable weights, every one of them away from its initial value: a fresh final layer is zero.
pub(crate) fn perturbed(cfg: &DdtConfig) -> (Ddt, VarMap) {
    let map = VarMap::new();
    let network = Ddt::new(cfg, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu)).unwrap();
    perturb(&map);
    (network, map)
}

fn perturb(map: &VarMap) {
    let mut vars: Vec<_> = map.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    for (i, (name, var)) in vars.iter().enumerate() {
        let noise = normal(i as u64, var.dims());
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        var.set(&noise.affine(0.15, offset).unwrap()).unwrap();
    }
}

/// The form of a network that is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Build {
    Plain,
    Fused,
}

/// [`perturbed`] for any family.
pub(crate) fn perturbed_network(cfg: &NetworkConfig, build: Build) -> (Box<dyn VelocityNetwork>, VarMap) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let network = match build {
        Build::Plain => cfg.build(vb).unwrap(),
        Build::Fused => cfg.build_fused(vb).unwrap(),
    };
    perturb(&map);
    (network, map)
}

pub(crate) fn weights(map: &VarMap) -> BTreeMap<String, Tensor> {
    map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

pub(crate) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    noise_batch(seed, &[0], (1, 1, count), &Device::Cpu).unwrap().reshape(shape).unwrap()
}

pub(crate) fn relative_rms(got: &Tensor, want: &Tensor) -> f64 {
    ddt_parity::relative_rms(got, want).unwrap()
}
