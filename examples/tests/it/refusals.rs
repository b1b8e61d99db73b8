//! What is refused, and in which words; nothing is ever left behind.

use std::path::Path;

use crate::{out, run};

#[track_caller]
fn check(folder: &Path, line: &[&str], expected: &[&str]) {
    let message = run(folder, line).unwrap_err();
    for part in expected {
        assert!(message.contains(part), "{line:?}: expected {part:?} in {message:?}");
    }
    assert!(!out(folder).exists());
}

#[test]
fn settings_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |line: &[&str], expected: &[&str]| {
        check(folder.path(), &[&["--weights", "demo"], line].concat(), expected);
    };
    demo(&["--class", "trick"], &["trick", "did you mean 9 (truck)", "--weights hub"]);
    demo(&["--class", "10"], &["class 10 is out of range", "0..=9"]);
    demo(&["--class", "-1"], &["class -1 is out of range"]);
    demo(&["--class", "1,,2"], &["between the commas"]);
    demo(&["--guidance", "NaN"], &["--guidance", "finite", "NaN"]);
    demo(&["--guidance", "inf"], &["finite"]);
    demo(&["--interval", "1,0.3"], &["--interval", "low < high", "(1, 0.3)"]);
    demo(&["--steps", "0"], &["--steps", "got 0"]);
    demo(&["--last-step", "0"], &["--last-step", "got 0", "leave it out for 0.04"]);
    demo(&["--last-step", "1"], &["last step inside (0, 1)"]);
    demo(&["--timeshift", "-1"], &["timeshift", "got -1"]);
    demo(&["--images", "5000"], &["do not fit on one page"]);
    demo(&["--preset", "ddt-xl3"], &["--preset", "ddt-xl2-22en6de"]);
    demo(&["--preset", "ddt-b2"], &["ddt-b2-8en4de", "leave --preset out"]);
    demo(&["--share", "unifrom:5"], &["unifrom:5", "uniform:R"]);
    demo(&["--weaker", "absent.safetensors"], &["--weaker", "absent.safetensors"]);
    demo(
        &["--guided-channels", "3", "--share", "plan.json"],
        &["--share: plan files are made", "leave both out"],
    );
}

#[test]
fn files_that_are_not_there_or_not_right() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();

    check(folder, &["--out", &at("missing/grid.png")], &["--out", "create the folder"]);
    check(folder, &["--out", &at("")], &["--out", "add a file name"]);
    check(folder, &["--weights", &at("absent.ckpt")], &["absent.ckpt", "auto, demo, hub"]);
    check(folder, &["--weights", folder.to_str().unwrap()], &["not a regular file"]);
    check(folder, &["--weights", "demo", "--vae", &at("absent.vae")], &["absent.vae", "--vae"]);

    std::fs::write(at("text"), "these are no weights").unwrap();
    check(folder, &["--weights", "demo", "--weaker", &at("text")], &["--weaker", "neither safetensors nor"]);
    check(folder, &["--weights", &at("text")], &["neither safetensors nor"]);
    check(folder, &["--weights", "demo", "--vae", &at("text")], &["neither safetensors nor"]);

    // The embedded demo as a file, whole and cut short.
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/ddt-cifar10.safetensors");
    let bytes = std::fs::read(&demo).unwrap();
    std::fs::write(at("cut"), &bytes[..bytes.len() - 1000]).unwrap();
    check(folder, &["--weights", &at("cut")], &["cut", "too early"]);
    std::fs::write(at("head"), &bytes[..100]).unwrap();
    check(folder, &["--weights", &at("head")], &["head", "too early"]);
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-flux2-encoder.safetensors");
    check(folder, &["--weights", encoder.to_str().unwrap()], &["add --preset NAME"]);
    check(
        folder,
        &["--weights", encoder.to_str().unwrap(), "--preset", "ddt-b2"],
        &["sd-vae-ft-ema", "--vae PATH"],
    );
    let whole = ["--weights", demo.to_str().unwrap(), "--images", "1", "--steps", "1", "--class", "0"];
    run(folder, &whole).unwrap();
}

#[test]
fn an_unreachable_hub_is_named_with_the_ways_out() {
    let folder = tempfile::tempdir().unwrap();
    check(folder.path(), &["--weights", "hub"], &["HF_HUB_OFFLINE", "--weights PATH", "demo"]);
    check(folder.path(), &["--weights", "hub", "--vae", "absent"], &["no file absent"]);
    // A wrong class is found before anything is downloaded.
    check(folder.path(), &["--weights", "hub", "--class", "golden retreiver"], &["did you mean 207"]);
}
