//! Weights on disk: what is written is read, and nothing else is.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddt_model::{Ddt, DdtConfig, DdtFile, Description, LatentInfo, ModelError, VelocityNetwork};

use crate::{normal, perturbed, relative_rms, sizes, weights};

fn velocity(network: &dyn VelocityNetwork) -> Tensor {
    let t = Tensor::new(&[0.4f32], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[2u32], &Device::Cpu).unwrap();
    network.forward(&normal(5, &[1, 2, 4, 4]), &t, &labels).unwrap().detach()
}

/// The message of a file that is refused.
fn refused<T: std::fmt::Debug>(result: Result<T, ModelError>) -> String {
    match result {
        Err(error @ ModelError::File { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn latents() -> LatentInfo {
    LatentInfo {
        autoencoder: "none".to_owned(),
        height: 4,
        width: 4,
        mean: vec![0.0, 1.0],
        std: vec![1.0, 2.0],
    }
}

fn description() -> Description {
    Description {
        config: sizes().into(),
        classes: Some(["a", "b", "c", "d", "e"].map(str::to_owned).to_vec()),
        latents: Some(latents()),
        metadata: BTreeMap::from([("note".to_owned(), "kept".to_owned())]),
    }
}

#[test]
fn a_saved_network_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let (network, map) = perturbed(&sizes());
    DdtFile::write(&path, &description(), &weights(&map)).unwrap();
    let file = DdtFile::open(&path).unwrap();
    assert_eq!(file.config(), Some(&sizes()));
    assert_eq!(file.classes().unwrap()[4], "e");
    assert_eq!(file.latents(), Some(&latents()));
    assert_eq!(file.metadata()["note"], "kept");
    let loaded = file.load(Some(&sizes()), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(relative_rms(&velocity(&loaded), &velocity(&network)), 0.0);
    let half = Ddt::load(&path, None, DType::F16, &Device::Cpu).unwrap();
    assert!(relative_rms(&velocity(&half), &velocity(&network)) < 1e-2);
}

#[test]
fn sizes_must_be_known_and_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = perturbed(&sizes());
    let path = folder.path().join("net.safetensors");
    DdtFile::write(&path, &description(), &weights(&map)).unwrap();
    let other = DdtConfig { num_encoder_blocks: 1, num_decoder_blocks: 3, ..sizes() };
    let message = refused(Ddt::load(&path, Some(&other), DType::F32, &Device::Cpu));
    assert!(
        message.contains("num_decoder_blocks: 3") && message.contains("num_decoder_blocks: 2"),
        "{message}"
    );
    let bare = folder.path().join("bare.safetensors");
    ddt_files::write_safetensors(&bare, &weights(&map), &BTreeMap::new()).unwrap();
    let message = refused(Ddt::load(&bare, None, DType::F32, &Device::Cpu));
    assert!(message.contains("ddt-xl2-22en6de"), "{message}");
    Ddt::load(&bare, Some(&sizes()), DType::F32, &Device::Cpu).unwrap();
}

#[test]
fn one_message_names_every_wrong_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let (_, map) = perturbed(&sizes());
    DdtFile::write(&path, &description(), &weights(&map)).unwrap();
    let metadata = DdtFile::open(&path).unwrap().metadata().clone();
    let mut wrong = weights(&map);
    wrong.remove("blocks.1.attn.qkv.weight").unwrap();
    wrong.insert("blocks.9.norm1.weight".to_owned(), normal(0, &[16]));
    wrong.insert("x_embedder.proj.bias".to_owned(), normal(0, &[15]));
    ddt_files::write_safetensors(&path, &wrong, &metadata).unwrap();
    let message = Ddt::load(&path, None, DType::F32, &Device::Cpu).unwrap_err().to_string();
    for name in ["blocks.1.attn.qkv.weight", "blocks.9.norm1.weight", "x_embedder.proj.bias"] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn nothing_wrong_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let (_, map) = perturbed(&sizes());
    let mut short = weights(&map);
    short.remove("final_layer.linear.bias").unwrap();
    let message = refused(DdtFile::write(&path, &description(), &short));
    assert!(
        message.ends_with("final_layer.linear.bias: expected shape [8], got no such weight"),
        "{message}"
    );
    let mut long = weights(&map);
    long.insert("more".to_owned(), normal(0, &[1]));
    let message = refused(DdtFile::write(&path, &description(), &long));
    assert!(message.ends_with("more: expected no such weight, got shape [1]"), "{message}");
    for bad in [
        LatentInfo { mean: vec![0.0], ..latents() },
        LatentInfo { std: vec![1.0, 0.0], ..latents() },
        LatentInfo { std: vec![1.0, f64::INFINITY], ..latents() },
        LatentInfo { height: 3, ..latents() },
    ] {
        let description = Description { latents: Some(bad), ..description() };
        let message = refused(DdtFile::write(&path, &description, &weights(&map)));
        assert!(message.contains("ddt.latents"), "{message}");
    }
    assert!(!path.exists());
}

#[test]
fn weights_can_be_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, again) = (folder.path().join("net.safetensors"), folder.path().join("again.safetensors"));
    let (network, map) = perturbed(&sizes());
    DdtFile::write(&path, &description(), &weights(&map)).unwrap();
    let read = DdtFile::open(&path).unwrap().weights(None).unwrap();
    DdtFile::write(&again, &description(), &read).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    let loaded = Ddt::load(&again, None, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(relative_rms(&velocity(&loaded), &velocity(&network)), 0.0);
}

#[test]
fn a_description_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let (_, map) = perturbed(&sizes());
    DdtFile::write(&path, &description(), &weights(&map)).unwrap();
    let good = DdtFile::open(&path).unwrap().metadata().clone();
    let opened = |key: &str, json: &str| {
        let mut metadata = good.clone();
        metadata.insert(key.to_owned(), json.to_owned());
        ddt_files::write_safetensors(&path, &weights(&map), &metadata).unwrap();
        DdtFile::open(&path)
    };
    let check = |key: &str, json: &str| {
        let message = refused(opened(key, json));
        assert!(message.contains(key), "{message}");
    };
    for json in ["", "{}", r#"{"in_channels":-1}"#, "[[[[[["] {
        check("ddt.config", json);
    }
    let zero = good["ddt.config"].replace("\"patch_size\":2", "\"patch_size\":0");
    assert!(matches!(opened("ddt.config", &zero), Err(ModelError::Config(_))));
    let latents = r#"{"autoencoder":"none","height":3,"width":4,"mean":[0,1],"std":[1,2]}"#;
    check("ddt.latents", latents);
    check("ddt.classes", r#"["a"]"#);
    assert!(DdtFile::open(folder.path().join("absent")).is_err());
}
