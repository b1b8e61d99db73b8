//! `ddt inspect` and `ddt convert`.

use std::fs;

use crate::{refuse, succeed};

#[test]
fn a_conversion_keeps_the_description_and_generates_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("demo.safetensors"), ddt_demo::NETWORK).unwrap();
    let shown = succeed(folder, &["inspect", "demo.safetensors"]);
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
    succeed(folder, &["convert", "demo.safetensors", "wide.safetensors", "--dtype", "f32"]);
    let compared = succeed(folder, &["inspect", "demo.safetensors", "wide.safetensors"]);
    assert!(
        compared.contains("f32") && !compared.contains("only in") && !compared.contains("other values"),
        "{compared}"
    );
    let draw = |weights: &str, out: &str| {
        let small = ["--steps", "1", "--images", "1", "--class", "0", "--out", out];
        succeed(folder, &[&["sample", "--weights", weights], &small[..]].concat());
        ddt::picture::read_png(&folder.join(out)).unwrap()
    };
    let (_, text) = draw("wide.safetensors", "wide.png");
    assert!(text[0].1.contains("airplane"), "{text:?}");

    // The demo by its name.
    succeed(folder, &["convert", "demo", "named.safetensors"]);
    let compared = succeed(folder, &["inspect", "demo.safetensors", "named.safetensors"]);
    assert!(!compared.contains("only in") && !compared.contains("other values"), "{compared}");

    // Names as a published checkpoint has them, and back.
    succeed(folder, &["convert", "demo.safetensors", "published.safetensors", "--published-names"]);
    let shown = succeed(folder, &["inspect", "published.safetensors", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let names: Vec<&str> =
        shown["tensors"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.iter().all(|it| it.starts_with("ema_denoiser.")) && names.len() > 50, "{names:?}");
    assert!(shown["network"].is_null());
}

#[test]
fn wrong_files_and_flags_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("demo.safetensors"), ddt_demo::NETWORK).unwrap();
    fs::write(folder.join("encoder.safetensors"), ddt_demo::TINY_ENCODER).unwrap();
    fs::write(folder.join("text"), "no weights").unwrap();
    refuse(folder, &["inspect", "absent"], 1, &["absent"]);
    refuse(folder, &["inspect", "text"], 1, &["neither safetensors nor"]);
    refuse(folder, &["inspect", "demo.safetensors", "text"], 1, &["neither safetensors nor"]);
    refuse(folder, &["convert", "text", "out.safetensors"], 1, &["neither safetensors nor"]);
    refuse(folder, &["convert", "demo.safetensors", "out.ckpt"], 1, &["ends in .safetensors"]);
    refuse(folder, &["convert", "encoder.safetensors", "out.safetensors"], 1, &["add --preset NAME"]);
    refuse(
        folder,
        &["convert", "encoder.safetensors", "out.safetensors", "--preset", "ddt-b2"],
        1,
        &["missing"],
    );
    refuse(
        folder,
        &["convert", "demo.safetensors", "out.safetensors", "--preset", "ddt-b2"],
        1,
        &["leave --preset out"],
    );
    refuse(
        folder,
        &["convert", "demo.safetensors", "out.safetensors", "--latents", "32"],
        1,
        &["leave --latents out"],
    );
    fs::write(folder.join("names"), "cat\ndog\n").unwrap();
    refuse(
        folder,
        &["convert", "demo.safetensors", "out.safetensors", "--classes", "names"],
        1,
        &["expected 10 names, got 2"],
    );
    assert!(!folder.join("out.safetensors").exists() && !folder.join("out.ckpt").exists());
}
