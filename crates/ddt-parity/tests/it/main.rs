//! The goldens as a whole: none is forgotten, large or proof of nothing.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ddt_parity::{compare, fixtures_in, folder, golden, relative_rms};

#[test]
fn every_golden_passes() {
    let paths = fixtures_in(&folder()).unwrap();
    assert!(paths.len() > 30, "{} goldens", paths.len());
    paths.iter().for_each(|it| check(it));
}

/// Fixtures of the same format elsewhere; a checkout without them has nothing else to compare.
#[test]
fn every_fixture_beside_the_checkout_passes() {
    let beside = fixtures_in(&folder().join("../../shared/fixtures"));
    beside.unwrap_or_default().iter().for_each(|it| check(it));
}

fn check(path: &Path) {
    let compared = compare(path, DType::F32).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
    let wrong: Vec<_> = compared.iter().filter(|it| !it.passed()).map(ToString::to_string).collect();
    assert_eq!(wrong, Vec::<String>::new(), "{}", path.display());
}

#[test]
fn goldens_are_small() {
    let sizes = std::fs::read_dir(folder()).unwrap().map(|it| it.unwrap());
    let files: Vec<_> = sizes.filter(|it| it.file_type().unwrap().is_file()).collect();
    let sizes: Vec<u64> = files.iter().map(|it| it.metadata().unwrap().len()).collect();
    for (file, size) in files.iter().zip(&sizes) {
        assert!(*size < 200_000, "{} has {size} bytes", file.path().display());
    }
    assert!(sizes.iter().sum::<u64>() <= 4_000_000);
}

#[test]
fn a_wrong_output_an_absent_golden_and_an_unknown_kind_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.safetensors");
    let write = |kind: &str, out: f32| {
        let metadata = [("kind", kind), ("cases", r#"[{"seed":1,"shape":[20]}]"#)];
        let metadata = metadata.into_iter().map(|(key, it)| (key.to_owned(), it.to_owned())).collect();
        let tensors = [("out.0".to_owned(), Tensor::full(out, 20, &Device::Cpu).unwrap())].into();
        ddt_files::write_safetensors(&path, &tensors, &metadata).unwrap();
        compare(&path, DType::F32)
    };
    assert!(write("torch_randn", 0.5).unwrap().iter().all(|it| !it.passed()));
    assert!(write("torch_randn", f32::NAN).unwrap().iter().all(|it| !it.passed()));
    assert!(write("unheard_of", 0.5).unwrap_err().to_string().contains("unheard_of"));
    assert!(compare(&path.with_extension("absent"), DType::F32).is_err());
    assert!(golden("absent").is_err());
    assert!(ddt_parity::check("unheard_of").is_err());
    // Only networks have weights that can be rounded.
    assert!(ddt_parity::check_in("torch_randn", DType::BF16).is_err());
}

#[test]
fn an_error_is_relative_to_what_is_wanted() {
    let tensor = |it: &[f32]| Tensor::new(it, &Device::Cpu).unwrap();
    assert_eq!(relative_rms(&tensor(&[3.0, 5.0]), &tensor(&[3.0, 4.0])).unwrap(), 0.2);
    assert_eq!(relative_rms(&tensor(&[0.0]), &tensor(&[0.0])).unwrap(), 0.0);
    assert!(relative_rms(&tensor(&[0.0]), &tensor(&[0.0, 1.0])).is_err());
}
