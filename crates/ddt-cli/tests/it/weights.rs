//! `ddt inspect`, `ddt convert` and `ddt verify`.

use std::{collections::BTreeMap, fs, io::Write, path::Path, process::Command};

use ddt::hub::{HubFile, Release};
use serde_json::{Value, json};

use crate::{refuse, succeed};

#[test]
fn a_conversion_keeps_the_description_and_generates_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("demo.safetensors"), ddt_demo::NETWORK).unwrap();
    let shown = succeed(folder, "inspect demo.safetensors");
    for part in [
        "sha256      c6165c0e1f2942b0",
        "\"num_classes\":10",
        "airplane, automobile",
        "4 x 4 of tiny-flux2",
        "blocks.0.adaLN_modulation.0.weight",
    ] {
        assert!(shown.contains(part) || part == "{part}: {shown}");
    }
    // The demo is stored in 16 bits; 32 hold them all.
    succeed(folder, "convert demo.safetensors wide.safetensors --dtype f32");
    let compared = succeed(folder, "inspect demo.safetensors wide.safetensors");
    assert!(
        compared.contains("f32") && !compared.contains("only in") && !compared.contains("other values"),
        "{compared}"
    );
    let draw = |weights: &str, out: &str| {
        succeed(folder, &format!("sample --weights {weights} --steps 1 --images 1 --class 0 --out {out}"));
        ddt::picture::read_png(&folder.join(out)).unwrap()
    };
    let (_, text) = draw("wide.safetensors", "wide.png");
    assert!(text[0].1.contains("airplane"), "{text:?}");

    // The demo by its name.
    succeed(folder, "convert demo named.safetensors");
    let compared = succeed(folder, "inspect demo.safetensors named.safetensors");
    assert!(!compared.contains("only in") && !compared.contains("other values"), "{compared}");
}

/// Loads a safetensors file into the PyTorch network beside the checkout; any name too many or too few is an error.
const STRICT: &str = r#"
import json, sys
from pathlib import Path
import torch
peer, path, sizes = sys.argv[1:]
sys.path.insert(0, peer)
from ddt_torch import Config, Ddt
bytes = Path(path).read_bytes()
start = 8 + int.from_bytes(bytes[:8], "little")
types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
state = {}
for name, it in json.loads(bytes[8:start]).items():
    if name != "__metadata__":
        begin, end = (start + offset for offset in it["data_offsets"])
        values = torch.frombuffer(bytearray(bytes[begin:end]), dtype=types[it["dtype"]])
        state[name.removeprefix("ema_denoiser.")] = values.reshape(it["shape"])
Ddt(Config(**json.loads(sizes))).load_state_dict(state, strict=True)
print(len(state))
"#;

#[test]
fn published_names_are_those_of_the_network_in_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, "convert demo published.safetensors --published-names");
    let shown = succeed(folder, "inspect published.safetensors --json");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["network"].is_null());
    let tensors = shown["tensors"].as_array().unwrap().iter();
    let got: BTreeMap<String, Value> =
        tensors.map(|it| (it["name"].as_str().unwrap().to_owned(), it["shape"].clone())).collect();
    let network = ddt::demo_file().unwrap().network_config().unwrap().clone();
    let shapes = network.parameter_shapes().unwrap().into_iter();
    let expected = shapes.map(|(name, shape)| (format!("ema_denoiser.{name}"), json!(shape))).collect();
    assert_eq!(got, expected);

    // PyTorch itself, where it is.
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/peer");
    let python = |words: &[&str]| Command::new("python3").current_dir(folder).args(words).output();
    let torch = python(&["-c", "import torch"]).is_ok_and(|it| it.status.success());
    if !torch || !peer.is_dir() {
        let lacks = if torch { "../shared/peer is not there" } else { "python3 has no torch" };
        // Not a macro, whose text the test runner would keep to itself.
        writeln!(std::io::stderr(), "PyTorch did not load the published names: {lacks}").unwrap();
        return;
    }
    let it = &network.sizes;
    let sizes = json!({
        "in_channels": it.in_channels, "patch_size": it.patch_size, "hidden_size": it.hidden_size,
        "num_groups": it.num_heads, "num_blocks": it.num_encoder_blocks + it.num_decoder_blocks,
        "num_encoder_blocks": it.num_encoder_blocks, "num_classes": it.num_classes,
    });
    let line = ["-c", STRICT, peer.to_str().unwrap(), "published.safetensors", &sizes.to_string()];
    let loaded = python(&line).unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    assert_eq!(String::from_utf8_lossy(&loaded.stdout).trim(), got.len().to_string());
}

#[test]
fn wrong_files_and_flags_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("demo.safetensors"), ddt_demo::NETWORK).unwrap();
    fs::write(folder.join("encoder.safetensors"), ddt_demo::TINY_ENCODER).unwrap();
    fs::write(folder.join("text"), "no weights").unwrap();
    fs::write(folder.join("names"), "cat\ndog\n").unwrap();
    for (line, expected) in [
        ("inspect absent", "absent"),
        ("inspect text", "neither safetensors nor"),
        ("inspect demo.safetensors text", "neither safetensors nor"),
        ("convert text out.safetensors", "neither safetensors nor"),
        ("convert demo.safetensors out.ckpt", "ends in .safetensors"),
        ("convert encoder.safetensors out.safetensors", "add --preset NAME"),
        ("convert encoder.safetensors out.safetensors --preset ddt-b2", "missing"),
        ("convert demo.safetensors out.safetensors --preset ddt-b2", "leave --preset out"),
        ("convert demo.safetensors out.safetensors --latents 32", "leave --latents out"),
        ("convert demo.safetensors out.safetensors --classes names", "expected 10 names, got 2"),
    ] {
        refuse(folder, line, 1, &[expected]);
    }
    assert!(!folder.join("out.safetensors").exists() && !folder.join("out.ckpt").exists());
}

/// Puts a file into the cache of `folder` as the hub's tools do, its blob under a name of choice.
#[cfg(unix)]
fn put(folder: &Path, file: &HubFile, blob: &str, bytes: &[u8]) {
    let commit = match file.revision() {
        "main" => "0123456789abcdef0123456789abcdef01234567",
        commit => commit,
    };
    let repository = folder.join("cache").join(format!("models--{}", file.repository().replace('/', "--")));
    let snapshot = repository.join("snapshots").join(commit);
    for folder in [repository.join("refs"), repository.join("blobs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repository.join("refs/main"), commit).unwrap();
    fs::write(repository.join("blobs").join(blob), bytes).unwrap();
    let link = snapshot.join(file.file());
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), link).unwrap();
}

#[cfg(unix)]
#[test]
fn missing_and_damaged_files_are_named_with_the_command_that_fetches_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let verify = "verify --preset ddt-xl2-256";
    let release = Release::DdtXl2R256;
    refuse(folder, "verify", 2, &["--preset"]);
    refuse(folder, "verify --preset ddt-b2", 2, &["ddt-xl2-256, ddt-xl2-512"]);
    refuse(folder, verify, 1, &["DDT-XL-22en6de-R256/model.ckpt", "ddt fetch ddt-xl2-256"]);
    refuse(folder, &format!("{verify} --count 9"), 2, &["--references"]);
    put(folder, &release.network(), "model", ddt_demo::NETWORK);
    refuse(folder, verify, 1, &["sd-vae-ft-ema", "ddt fetch ddt-xl2-256"]);

    // What the paper's protocol needs is looked for before the files are read.
    put(folder, &release.autoencoder().decoder(), "autoencoder", ddt_demo::TINY_DECODER);
    let protocol = |more: &str| format!("{verify} --references absent.npz {more}");
    refuse(folder, &protocol(""), 1, &["--weights", "pytorch-fid"]);
    refuse(folder, &protocol("--extractor cifar10-classifier"), 1, &["REFERENCES", "absent.npz"]);
    fs::write(folder.join("blocked"), "").unwrap();
    refuse(
        folder,
        &protocol("--extractor cifar10-classifier --out blocked/x"),
        1,
        &["--out", "cannot make the folder"],
    );

    // A blob whose bytes are not those of its name.
    let blob = "c".repeat(64);
    put(folder, &release.autoencoder().decoder(), &blob, ddt_demo::TINY_DECODER);
    let expected = format!("expected sha256:{blob}");
    refuse(folder, verify, 1, &[&expected, "fetch it again", &format!("blobs/{blob}")]);

    // The demo instead of the published network: its sizes are others.
    put(folder, &release.autoencoder().decoder(), "autoencoder", ddt_demo::TINY_DECODER);
    refuse(folder, verify, 1, &["reading the network", "expected a network of", "hidden_size: 1152"]);
    assert!(succeed(folder, "doctor").contains("ddt-xl2-256: network fetched, autoencoder fetched"));
}
