//! All systems behind one interface: built, called, sampled from, written and read.

use std::{collections::BTreeMap, ops::ControlFlow};

use candle_core::{DType, Device, Tensor};
use ddt_flow::{EULER, Guidance, TimeGrid};
use ddt_model::{
    DdtConfig, DdtFile, Description, DitDhConfig, Family, ModelError, NetworkConfig, NoisyInput, Projection,
    SampleOptions, TokenMixer, VelocityNetwork, parameter_dtype, sample, sample_autoguided,
};
use ddt_sharing::SharingPlan;

use crate::{Build, normal, perturbed_network, relative_rms, sizes, weights};

/// One small network of each family and each decoder, for latents of 4 x 4.
pub(crate) fn families() -> Vec<(&'static str, NetworkConfig)> {
    let ddt = NetworkConfig::from(sizes());
    let family = |family| NetworkConfig { family, ..ddt.clone() };
    let fixed = |it| NetworkConfig { grid_side: Some(2), ..family(it) };
    let own = DitDhConfig { decoder_hidden_size: 24, decoder_num_heads: 3, ..DitDhConfig::PUBLISHED };
    let dit_dh = NetworkConfig {
        family: Family::DitDh,
        sizes: DdtConfig { patch_size: 1, ..sizes() },
        grid_side: Some(4),
        dit_dh: Some(own),
        ..ddt.clone()
    };
    let projection = Some(Projection { align_layer: 2, hidden_size: 12, feature_size: 6 });
    vec![
        ("ddt", ddt.clone()),
        ("ddt, convolutions", NetworkConfig { decoder_mixer: TokenMixer::Conv3x3, ..ddt.clone() }),
        ("ddt, mlps", NetworkConfig { decoder_mixer: TokenMixer::Mlp, ..ddt.clone() }),
        ("ddt-dagger", fixed(Family::DdtDagger)),
        ("improved-sit", family(Family::ImprovedSit)),
        ("sit", fixed(Family::Sit)),
        ("repa", NetworkConfig { projection, ..fixed(Family::Repa) }),
        ("dit-dh", dit_dh),
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
        let (network, map) = perturbed_network(&cfg, Build::Plain);
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
        assert_eq!(loaded.decoupled().is_some(), cfg.family.is_decoupled());
        match file.load(None, DType::F32, &Device::Cpu) {
            Ok(ddt) if name == "ddt" => {
                assert_eq!(relative_rms(&velocity(&ddt), &velocity(network.as_ref())), 0.0);
            }
            Err(ModelError::File { reason, .. }) if name != "ddt" => {
                assert!(reason.contains(&format!("{:?}", cfg.family)), "{reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
        let other = NetworkConfig { family: Family::ImprovedSit, ..NetworkConfig::from(sizes()) };
        if cfg.family != Family::ImprovedSit {
            let refused = file.load_network(Some(&other), DType::F32, &Device::Cpu);
            assert!(matches!(refused, Err(ModelError::File { .. })), "{name}");
        }
    }
}

#[test]
fn sixteen_bits_of_dit_dh_round_no_frequency() {
    let (_, cfg) = families().pop().unwrap();
    let (network, map) = perturbed_network(&cfg, Build::Plain);
    let want = velocity(&*network);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let description =
        Description { config: cfg.clone(), classes: None, latents: None, metadata: BTreeMap::new() };
    // One rounding is 2^-9 or 2^-12, and a velocity has those of all weights.
    for (dtype, tolerance) in [(DType::BF16, 3e-2), (DType::F16, 3e-3)] {
        let error = |dtype_of: &dyn Fn(&str) -> DType| {
            let stored = weights(&map).into_iter();
            let stored =
                stored.map(|(name, it)| (name.clone(), it.to_dtype(dtype_of(&name)).unwrap())).collect();
            DdtFile::write(&path, &description, &stored).unwrap();
            let loaded = DdtFile::open(&path).unwrap().load_network(None, DType::F32, &Device::Cpu).unwrap();
            relative_rms(&velocity(&*loaded), &want)
        };
        let kept = error(&|name| parameter_dtype(name, dtype));
        assert!(kept < tolerance, "{dtype:?}: {kept}");
        let only = error(&|name| if parameter_dtype(name, dtype) == DType::F32 { dtype } else { DType::F32 });
        assert!(only > 0.0, "{dtype:?}: rounded frequencies alone change nothing");
    }
}

#[test]
fn the_average_of_a_trainer_s_file_is_read_in_any_dtype() {
    let (_, cfg) = families().pop().unwrap();
    let (network, map) = perturbed_network(&cfg, Build::Plain);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer.safetensors");
    let fixed = cfg.fixed_tensors().unwrap();
    let tensors = weights(&map).into_iter().chain(fixed).map(|(name, it)| (format!("ema.{name}"), it));
    let mut tensors: BTreeMap<String, Tensor> = tensors.collect();
    let file = |tensors: &BTreeMap<String, Tensor>| {
        ddt_files::write_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
        DdtFile::open(&path).unwrap()
    };
    let read = |file: &DdtFile, dtype| file.load_network(Some(&cfg), dtype, &Device::Cpu).unwrap();
    let want = velocity(&*network);
    assert_eq!(relative_rms(&velocity(&*read(&file(&tensors), DType::F32)), &want), 0.0);
    // Beside the weights that training ended with.
    for (name, it) in tensors.clone() {
        let other = it.affine(2.0, 0.1).unwrap();
        tensors.insert(name.replacen("ema.", "model.", 1), other);
    }
    assert_eq!(relative_rms(&velocity(&*read(&file(&tensors), DType::F32)), &want), 0.0);
    assert!(relative_rms(&velocity(&*read(&file(&tensors), DType::BF16)), &want) < 3e-2);
}

#[test]
fn other_positions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let cfg = NetworkConfig { family: Family::Sit, grid_side: Some(2), ..sizes().into() };
    let (_, map) = perturbed_network(&cfg, Build::Plain);
    let mut weights = weights(&map);
    weights.insert("pos_embed".to_owned(), normal(1, &[1, 4, 16]));
    let description =
        Description { config: cfg.clone(), classes: None, latents: None, metadata: BTreeMap::new() };
    let refused = DdtFile::write(&path, &description, &weights);
    let positions = |error: ModelError| assert!(error.to_string().contains("pos_embed differs"), "{error}");
    positions(refused.unwrap_err());
    ddt_files::write_safetensors(&path, &weights, &BTreeMap::new()).unwrap();
    let refused = DdtFile::open(&path).unwrap().load_network(Some(&cfg), DType::F32, &Device::Cpu);
    positions(refused.unwrap_err());
}

#[test]
fn every_family_is_sampled_from_and_images_do_not_see_each_other() {
    let (noise, labels) = (normal(3, &[2, 2, 4, 4]), [1, 4]);
    let guidance = Guidance::new(2.0, (0.2, 0.8)).unwrap();
    let plan = SharingPlan::new(vec![0, 2], 4).unwrap();
    for (name, cfg) in families() {
        let (network, _) = perturbed_network(&cfg, Build::Plain);
        let run = |noise: &Tensor, labels: &[u32], plan| {
            sample(network.as_ref(), noise, labels, &options(guidance, plan), &mut go_on)
        };
        let whole = run(&noise, &labels, None).unwrap();
        let second = run(&noise.narrow(0, 1, 1).unwrap(), &labels[1..], None).unwrap();
        let error = relative_rms(&second.latents, &whole.latents.narrow(0, 1, 1).unwrap());
        assert!(error < 1e-5, "{name}: {error}");
        let shared = run(&noise, &labels, Some(&plan));
        if cfg.family.is_decoupled() {
            assert_eq!(shared.unwrap().calls.encoder, 2, "{name}");
            assert_eq!((whole.calls.encoder, whole.calls.decoder), (4, 4), "{name}");
        } else {
            let message = shared.unwrap_err().to_string();
            assert!(message.contains(&format!("{:?}", cfg.family)), "{name}: {message}");
            assert_eq!((whole.calls.encoder, whole.calls.decoder), (0, 4), "{name}");
        }
        let t = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let label = Tensor::new(&[1u32], &Device::Cpu).unwrap();
        let x = noise.narrow(0, 0, 1).unwrap();
        let blocks = if cfg.family.is_decoupled() { 2 } else { 4 };
        let input = NoisyInput { x_t: &x, t: &t, labels: &label };
        let (velocity, features) = network.forward_with_features(input, blocks).unwrap();
        let tokens = cfg.sizes.num_tokens(4, 4);
        assert_eq!((velocity.dims(), features.dims()), (x.dims(), &[1, tokens, 16][..]), "{name}");
        assert!(network.forward_with_features(input, blocks + 1).is_err(), "{name}");
    }
}

#[test]
fn autoguidance_leads_away_from_the_guiding_network() {
    let (noise, labels) = (normal(3, &[2, 2, 4, 4]), [1, 4]);
    let small = NetworkConfig { family: Family::ImprovedSit, ..sizes().into() };
    let (guiding, _) = perturbed_network(&small, Build::Plain);
    let guidance = Guidance::new(2.0, (0.2, 0.8)).unwrap();
    let every = SharingPlan::every_step(4).unwrap();
    for (name, cfg) in families() {
        let (network, _) = perturbed_network(&cfg, Build::Plain);
        let run = |plan| {
            let options = options(guidance, plan);
            sample_autoguided(&*network, &*guiding, &noise, &labels, &options, &mut go_on).unwrap().latents
        };
        let got = run(None);
        // By hand: v_guiding + 2 (v - v_guiding) at the steps that start inside the interval.
        let labels_row = Tensor::new(&labels, &Device::Cpu).unwrap();
        let mut x = noise.clone();
        for t in [0.0, 0.25, 0.5, 0.75] {
            let times = Tensor::full(t as f32, 2, &Device::Cpu).unwrap();
            let v = network.forward(&x, &times, &labels_row).unwrap();
            let weak = guiding.forward(&x, &times, &labels_row).unwrap();
            let guided = if t > 0.2 { ((&v * 2.0).unwrap() - weak).unwrap() } else { v };
            x = (x + (guided * 0.25).unwrap()).unwrap();
        }
        let error = relative_rms(&got, &x);
        assert!(error < 1e-5, "{name}: {error}");
        if cfg.family.is_decoupled() {
            assert_eq!(relative_rms(&run(Some(&every)), &got), 0.0);
        }
    }
    let other = NetworkConfig::from(DdtConfig { num_classes: 7, ..sizes() });
    let (other, _) = perturbed_network(&other, Build::Plain);
    let options = options(guidance, None);
    let refused = sample_autoguided(&*guiding, &*other, &noise, &labels, &options, &mut go_on);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("2 channels and 5 classes") && message.ends_with("got 2 and 7"), "{message}");
}

#[test]
fn the_frozen_form_computes_what_the_definition_does() {
    for (name, cfg) in families() {
        let (network, map) = perturbed_network(&cfg, Build::Plain);
        let want = velocity(&*network);
        let frozen = |dtype| {
            let weights =
                weights(&map).into_iter().map(|(name, it)| (name, it.detach().to_dtype(dtype).unwrap()));
            let vb = candle_nn::VarBuilder::from_tensors(weights.collect(), dtype, &Device::Cpu);
            velocity(&*cfg.build_frozen(vb).unwrap())
        };
        assert!(relative_rms(&frozen(DType::F32), &want) < 1e-6, "{name}");
        // bf16 keeps 8 bits: one rounding is 2^-9, and four blocks have about fifty.
        let error = relative_rms(&frozen(DType::BF16), &want);
        assert!(error < 3e-2, "{name}: {error}");
    }
}

#[test]
fn attention_is_no_mixer_of_a_mixer_ddt() {
    let vb = candle_nn::VarBuilder::zeros(DType::F32, &Device::Cpu);
    let message = ddt_model::MixerDdt::new(&sizes().into(), vb).unwrap_err().to_string();
    assert!(message.contains("conv3x3"), "{message}");
}
