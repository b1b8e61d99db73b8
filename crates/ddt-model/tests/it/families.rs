//! All systems behind one interface: built, called, sampled from, written and read.

use std::{collections::BTreeMap, ops::ControlFlow};

use candle_core::{DType, Device, Tensor};
use ddt_flow::{EULER, Guidance, TimeGrid};
use ddt_model::{
    Ddt, DdtFile, Description, Family, ModelError, NetworkConfig, Projection, SampleOptions, TokenMixer,
    VelocityNetwork, sample, sample_autoguided,
};
use ddt_sharing::SharingPlan;

use crate::networks::{normal, perturbed_network, relative_rms, sizes, weights};

/// One small network of each family and each decoder, for latents of 4 x 4.
pub(crate) fn families() -> Vec<(&'static str, NetworkConfig)> {
    let ddt = NetworkConfig::from(sizes());
    let family = |family| NetworkConfig { family, ..ddt.clone() };
    let fixed = |it| NetworkConfig { grid_side: Some(2), ..family(it) };
    let projection = Some(Projection { align_layer: 2, hidden_size: 12, feature_size: 6 });
    vec![
        ("ddt", ddt.clone()),
        ("ddt, convolutions", NetworkConfig { decoder_mixer: TokenMixer::Conv3x3, ..ddt.clone() }),
        ("ddt, mlps", NetworkConfig { decoder_mixer: TokenMixer::Mlp, ..ddt.clone() }),
        ("ddt, unimproved", fixed(Family::DdtDagger)),
        ("improved-sit", family(Family::ImprovedSit)),
        ("sit", fixed(Family::Sit)),
        ("repa", NetworkConfig { projection, ..fixed(Family::Repa) }),
    ]
}

fn options<'a>(guidance: Guidance, plan: Option<&'a SharingPlan>) -> SampleOptions<'a> {
    SampleOptions { grid: TimeGrid::new(4, None, 1.0).unwrap(), solver: &EULER, guidance, plan }
}

fn go_on(_: &ddt_flow::StepReport<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn velocity(network: &dyn VelocityNetwork) -> Tensor {
    let t = Tensor::new(&[0.4f32, 0.7], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[2u32, 5], &Device::Cpu).unwrap();
    network.forward(&normal(5, &[2, 2, 4, 4]), &t, &labels).unwrap().detach()
}

#[test]
fn files_say_what_is_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    for (name, cfg) in families() {
        let (network, map) = perturbed_network(&cfg);
        let description =
            Description { config: cfg.clone(), classes: None, latents: None, metadata: BTreeMap::new() };
        DdtFile::write(&path, &description, &weights(&map)).unwrap();
        let file = DdtFile::open(&path).unwrap();
        assert_eq!(file.network_config(), Some(&cfg));
        let loaded = file.load_network(None, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(loaded.config(), &cfg);
        assert_eq!(relative_rms(&velocity(loaded.as_ref()), &velocity(network.as_ref())), 0.0, "{name}");
        // What is read can be written again, positions included.
        DdtFile::write(&path, &description, &file.weights(None).unwrap()).unwrap();
        assert_eq!(loaded.halves().is_some(), cfg.family.has_halves());
        match (file.load(None, DType::F32, &Device::Cpu), cfg.family.has_halves()) {
            (Ok(ddt), true) => assert_eq!(relative_rms(&velocity(&ddt), &velocity(network.as_ref())), 0.0),
            (Err(ModelError::NoHalves { family }), false) => assert_eq!(family, cfg.family),
            (other, _) => panic!("{name}: {other:?}"),
        }
        let other = NetworkConfig { family: Family::ImprovedSit, ..NetworkConfig::from(sizes()) };
        if cfg.family != Family::ImprovedSit {
            let refused = file.load_network(Some(&other), DType::F32, &Device::Cpu);
            assert!(matches!(refused, Err(ModelError::ConfigDiffers { .. })), "{name}");
        }
    }
}

#[test]
fn other_positions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let cfg = NetworkConfig { family: Family::Sit, grid_side: Some(2), ..sizes().into() };
    let (_, map) = perturbed_network(&cfg);
    let mut weights = weights(&map);
    weights.insert("pos_embed".to_owned(), normal(1, &[1, 4, 16]));
    let description =
        Description { config: cfg.clone(), classes: None, latents: None, metadata: BTreeMap::new() };
    let refused = DdtFile::write(&path, &description, &weights);
    assert!(matches!(refused, Err(ModelError::Positions { .. })), "{refused:?}");
    ddt_files::write_safetensors(&path, &weights, &BTreeMap::new()).unwrap();
    let refused = DdtFile::open(&path).unwrap().load_network(Some(&cfg), DType::F32, &Device::Cpu);
    assert!(matches!(refused, Err(ModelError::Positions { .. })), "{refused:?}");
}

#[test]
fn every_family_is_sampled_from_and_images_do_not_see_each_other() {
    let (noise, labels) = (normal(3, &[2, 2, 4, 4]), [1, 4]);
    let guidance = Guidance::new(2.0, (0.2, 0.8)).unwrap();
    let plan = SharingPlan::new(vec![0, 2], 4).unwrap();
    for (name, cfg) in families() {
        let (network, _) = perturbed_network(&cfg);
        let run = |noise: &Tensor, labels: &[u32], plan| {
            sample(network.as_ref(), noise, labels, &options(guidance, plan), &mut go_on)
        };
        let whole = run(&noise, &labels, None).unwrap();
        let second = run(&noise.narrow(0, 1, 1).unwrap(), &labels[1..], None).unwrap();
        let error = relative_rms(&second.latents, &whole.latents.narrow(0, 1, 1).unwrap());
        assert!(error < 1e-5, "{name}: {error}");
        let shared = run(&noise, &labels, Some(&plan));
        if cfg.family.has_halves() {
            assert_eq!(shared.unwrap().calls.encoder, 2, "{name}");
            assert_eq!((whole.calls.encoder, whole.calls.decoder), (4, 4), "{name}");
        } else {
            assert!(matches!(shared, Err(ModelError::NoHalves { .. })), "{name}");
            assert_eq!((whole.calls.encoder, whole.calls.decoder), (0, 4), "{name}");
        }
        let t = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let label = Tensor::new(&[1u32], &Device::Cpu).unwrap();
        let x = noise.narrow(0, 0, 1).unwrap();
        let blocks = if cfg.family.has_halves() { 2 } else { 4 };
        let (velocity, features) = network.forward_with_features(&x, &t, &label, blocks).unwrap();
        assert_eq!((velocity.dims(), features.dims()), (x.dims(), &[1, 4, 16][..]), "{name}");
        assert!(network.forward_with_features(&x, &t, &label, blocks + 1).is_err(), "{name}");
    }
}

#[test]
fn autoguidance_leaves_the_weaker_network_behind() {
    let (noise, labels) = (normal(3, &[2, 2, 4, 4]), [1, 4]);
    let small = NetworkConfig { family: Family::ImprovedSit, ..sizes().into() };
    let (weaker, _) = perturbed_network(&small);
    let guidance = Guidance::new(2.0, (0.2, 0.8)).unwrap();
    let every = SharingPlan::every_step(4).unwrap();
    for (name, cfg) in families() {
        let (network, _) = perturbed_network(&cfg);
        let pair = (network.as_ref(), weaker.as_ref());
        let autoguided = sample_autoguided(pair, &noise, &labels, &options(guidance, None), &mut go_on);
        let got = autoguided.unwrap().latents;
        // By hand: v_weak + 2 (v - v_weak) at the steps that start inside the interval.
        let labels_row = Tensor::new(&labels, &Device::Cpu).unwrap();
        let mut x = noise.clone();
        for t in [0.0, 0.25, 0.5, 0.75] {
            let times = Tensor::full(t as f32, 2, &Device::Cpu).unwrap();
            let v = network.forward(&x, &times, &labels_row).unwrap();
            let weak = weaker.forward(&x, &times, &labels_row).unwrap();
            let guided = if t > 0.2 { ((&v * 2.0).unwrap() - weak).unwrap() } else { v };
            x = (x + (guided * 0.25).unwrap()).unwrap();
        }
        let error = relative_rms(&got, &x);
        assert!(error < 1e-5, "{name}: {error}");
        if cfg.family.has_halves() {
            let shared =
                sample_autoguided(pair, &noise, &labels, &options(guidance, Some(&every)), &mut go_on);
            assert_eq!(relative_rms(&shared.unwrap().latents, &got), 0.0);
        }
    }
    let other = NetworkConfig::from(ddt_model::DdtConfig { num_classes: 7, ..sizes() });
    let (other, _) = perturbed_network(&other);
    let pair = (weaker.as_ref(), other.as_ref());
    let refused = sample_autoguided(pair, &noise, &labels, &options(guidance, None), &mut go_on);
    assert!(matches!(refused, Err(ModelError::Weaker { .. })));
}

#[test]
fn decoder_only_is_no_ddt() {
    let cfg = NetworkConfig { family: Family::ImprovedSit, ..sizes().into() };
    let vb = candle_nn::VarBuilder::zeros(DType::F32, &Device::Cpu);
    assert!(matches!(Ddt::from_config(&cfg, vb.clone()), Err(ModelError::NoHalves { .. })));
    assert!(ddt_model::DecoderOnly::new(&sizes().into(), vb).is_err());
}
