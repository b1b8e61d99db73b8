//! DiT^DH and its autoencoder as a user runs them: small files in the published layout, the published sampler, its
//! protocol, and what is said of files that are missing or do not fit.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use ddt::{
    files::write_safetensors,
    hub::{Hub, HubFile, Release},
    model::{DdtConfig, DdtFile, Description, DitDhConfig, LatentInfo, NetworkConfig, parameter_dtype},
};

use crate::{refuse, succeed};

/// Width of the smallest published decoder, which tells the number of heads.
const WIDTH: usize = 768;

/// Numbers that differ from each other.
fn numbers(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 0.05).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A DiT^DH of narrow blocks for the published latents and ImageNet's classes.
fn write_network(path: &Path, num_encoder_blocks: usize) {
    let preset = NetworkConfig::preset("ditdh-s-256").unwrap();
    let sizes = DdtConfig {
        hidden_size: 16,
        num_heads: 2,
        num_encoder_blocks,
        num_decoder_blocks: 1,
        ..preset.sizes
    };
    let own = DitDhConfig { decoder_hidden_size: 24, decoder_num_heads: 3, ..DitDhConfig::PUBLISHED };
    let config = NetworkConfig { sizes, dit_dh: Some(own), ..preset };
    let shapes = config.parameter_shapes().unwrap().into_iter();
    let weights = shapes.map(|(name, shape)| (name, numbers(&shape))).collect();
    let (mean, std) = (vec![0.0; WIDTH], vec![1.0; WIDTH]);
    let latents = LatentInfo { autoencoder: "rae-dinov2-b-256".to_owned(), height: 16, width: 16, mean, std };
    let description =
        Description { config, classes: None, latents: Some(latents), metadata: BTreeMap::new() };
    DdtFile::write(path, &description, &weights).unwrap();
}

/// A decoder of one block with 2 x 2 pixels per position.
fn write_decoder(path: &Path, grid: usize) {
    let mut tensors = BTreeMap::new();
    let mut linear = |name: &str, out: usize, inp: usize| {
        tensors.insert(format!("{name}.weight"), numbers(&[out, inp]));
        tensors.insert(format!("{name}.bias"), numbers(&[out]));
    };
    linear("decoder_embed", WIDTH, WIDTH);
    linear("decoder_pred", 12, WIDTH);
    for name in ["attention.attention.query", "attention.attention.key", "attention.attention.value"] {
        linear(&format!("decoder_layers.0.{name}"), WIDTH, WIDTH);
    }
    linear("decoder_layers.0.attention.output.dense", WIDTH, WIDTH);
    linear("decoder_layers.0.intermediate.dense", 8, WIDTH);
    linear("decoder_layers.0.output.dense", WIDTH, 8);
    for name in ["decoder_layers.0.layernorm_before", "decoder_layers.0.layernorm_after", "decoder_norm"] {
        tensors.insert(format!("{name}.weight"), Tensor::ones(WIDTH, DType::F32, &Device::Cpu).unwrap());
        tensors.insert(format!("{name}.bias"), numbers(&[WIDTH]));
    }
    tensors.insert("trainable_cls_token".to_owned(), numbers(&[1, 1, WIDTH]));
    tensors.insert("decoder_pos_embed".to_owned(), numbers(&[1, 1 + grid * grid, WIDTH]));
    write_safetensors(path, &tensors, &BTreeMap::new()).unwrap();
}

fn write_statistics(path: &Path, grid: usize) {
    let var = Tensor::ones((WIDTH, grid, grid), DType::F32, &Device::Cpu).unwrap();
    write_safetensors(path, &BTreeMap::from([("var".to_owned(), var)]), &BTreeMap::new()).unwrap();
}

/// The place of a file in the cache of `folder`, whose folders are made.
fn place(folder: &Path, file: &HubFile) -> std::path::PathBuf {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = Hub { cache: folder.join("cache"), ..Hub::from_env() }.repository_folder(file);
    let path = repository.join("snapshots").join(commit).join(file.file());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    path
}

#[test]
fn the_published_sampler_is_stamped_and_compared_with_its_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_network(&folder.join("net.safetensors"), 2);
    write_network(&folder.join("weak.safetensors"), 1);
    write_decoder(&folder.join("model.pt"), 16);
    write_statistics(&folder.join("stat.pt"), 16);
    let dataset = "dataset --weights net.safetensors --autoencoder model.pt --guiding-network weak.safetensors \
                   --class 0,1 --count 8 --batch 8";
    let evaluate = |name: &str, protocol: &str| {
        let line = format!("evaluate {name} {name} --extractor cifar10-classifier --protocol {protocol}");
        succeed(folder, &line)
    };

    let made = succeed(folder, &format!("{dataset} --fidelity exact --rounding down --out exact.npz"));
    assert!(made.starts_with("8 images of 32 x 32 pixels, 2 classes"), "{made}");
    let shown = evaluate("exact.npz", "rae-imagenet-256-autoguided");
    for part in [
        "not the numbers of rae-imagenet-256-autoguided, which requires otherwise:",
        "images in the sample: expected 50000, got 8",
        "evaluator: expected inception-2015-tf",
        "width of the network: expected 1152, got 16",
        "encoder blocks of the network: expected 28, got 2",
        "guiding network: expected ditdh-s-256, got weak.safetensors",
        "published: fid 1.13, inception_score 262.6, precision 0.78, recall 0.67 (DiT^DH-XL, arXiv:2510.11690",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    for met in ["family of", "solver:", "steps:", "guidance:", "sharing:", "rounding:", "unknown:"] {
        assert!(!shown.contains(met), "{met}: {shown}");
    }
    // Guided where the table's result is not.
    let shown = evaluate("exact.npz", "rae-imagenet-256");
    for part in [
        "guidance scale: expected 1, got 1.42",
        "guiding network: expected none, got weak.safetensors",
        "published: fid 2.16 (DiT^DH-XL, arXiv:2510.11690, 80 epochs)",
        "published: fid 1.51,",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    // Other settings; guidance that is given in part is completed by that of the guiding network.
    succeed(folder, &format!("{dataset} --steps 2 --interval 0.1,1 --share uniform:2 --out other.npz"));
    let shown = evaluate("other.npz", "rae-imagenet-256-autoguided");
    for part in [
        "steps: expected {\"end\":0.999,\"num_steps\":49,\"timeshift\":6.928203230275509}, got {",
        "got {\"closed\":true,\"interval\":[0.1,1.0],\"scale\":1.42}",
        "sharing: expected none, got uniform:2,order:2",
        "rounding: expected clamp(floor(127.5 x + 127.5), 0, 255), got clamp(floor(127.5 x + 128), 0, 255)",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Without a description nothing is known of the sampler.
    fs::remove_file(folder.join("other.npz.json")).unwrap();
    let shown = evaluate("other.npz", "rae-imagenet-256-autoguided");
    assert!(shown.contains("unknown: how the sample was generated") && !shown.contains("steps:"), "{shown}");
}

#[test]
fn files_that_are_missing_or_do_not_fit_are_named_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let release = Release::DitDhXlR256;
    // A network that was asked for by its name is never the demo.
    for line in [
        "sample --preset ditdh-xl-256",
        "sample --preset ditdh-xl-256 --fidelity exact",
        "dataset --preset ditdh-xl-256",
        "plan --preset ditdh-xl-256",
        "study sharing --preset ditdh-xl-256",
        "verify --preset ditdh-xl-256",
    ] {
        refuse(folder, line, 1, &["DiTDH-XL/stage2_model.pt", "ddt fetch ditdh-xl-256"]);
    }
    refuse(folder, "sample --preset ddt-xl2-256", 1, &["DDT-XL-22en6de-R256", "ddt fetch ddt-xl2-256"]);

    let verify = "verify --preset ditdh-xl-256";
    let autoencoder = release.autoencoder();
    write_network(&place(folder, &release.network()), 2);
    refuse(folder, verify, 1, &["ViTXL_n08/model.pt", "ddt fetch ditdh-xl-256"]);
    refuse(folder, "sample --preset ditdh-xl-256", 1, &["contradicts", "leave the sizes out"]);
    let decoder = place(folder, &autoencoder.decoder());
    write_decoder(&decoder, 16);
    refuse(folder, verify, 1, &["imagenet1k/stat.pt", "ddt fetch ditdh-xl-256"]);
    let statistics = place(folder, &autoencoder.statistics().unwrap());
    write_statistics(&statistics, 8);
    let got = "expected statistics of latents of 768 channels and 16 x 16 positions, which ditdh-xl-256 generates, got \
               768 channels and 8 x 8 positions; remove the file and run ddt fetch ditdh-xl-256";
    refuse(folder, verify, 1, &["imagenet1k/stat.pt", got]);
    write_statistics(&statistics, 16);
    write_decoder(&decoder, 8);
    refuse(
        folder,
        verify,
        1,
        &["ViTXL_n08/model.pt", "a decoder for latents", "got 768 channels and 8 x 8 positions"],
    );
    fs::write(&decoder, "no decoder").unwrap();
    refuse(folder, verify, 1, &["ViTXL_n08/model.pt", "neither safetensors nor"]);
    write_decoder(&decoder, 16);
    refuse(
        folder,
        verify,
        1,
        &["reading the network ditdh-xl-256", "DiTDH-XL/stage2_model.pt", "hidden_size: 1152"],
    );

    // The guiding network.
    let guided = |name: &str| format!("{verify} --guiding-network {name}");
    refuse(folder, &guided("ditdh-s-256"), 1, &["DiTDH-S_ep14/stage2_model.pt", "ddt fetch ditdh-s-256"]);
    refuse(
        folder,
        &guided("ditdh-s-512"),
        1,
        &["--guiding-network: expected ditdh-s-256", "got ditdh-s-512"],
    );
    refuse(folder, "verify --preset ddt-xl2-256 --guiding-network ditdh-s-256", 1, &["expected none"]);
    refuse(folder, &guided("mine.pt"), 2, &["ditdh-s-256, ditdh-s-512"]);
    let sample = "sample --weights ditdh-xl-256 --guiding-network mine.pt";
    refuse(folder, sample, 1, &["the guiding network: there is no file mine.pt", "ditdh-s-256"]);
}

#[test]
fn a_conversion_to_16_bits_keeps_the_frequencies_of_times() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_network(&folder.join("net.safetensors"), 2);
    for dtype in ["bf16", "f16"] {
        succeed(folder, &format!("convert net.safetensors half.safetensors --dtype {dtype}"));
        let file = ddt::files::Checkpoint::open(folder.join("half.safetensors")).unwrap();
        for name in file.names() {
            let half = if dtype == "bf16" { DType::BF16 } else { DType::F16 };
            assert_eq!(file.info(name).unwrap().dtype, parameter_dtype(name, half), "{name}");
        }
        assert_eq!(file.info("t_embedder.W").unwrap().dtype, DType::F32);
    }
}
