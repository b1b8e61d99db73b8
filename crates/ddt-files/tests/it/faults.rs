//! Every change of the disk by the writers of this crate is made to fail in turn, and is cut short by kills.

#![allow(clippy::print_stdout, reason = "the numbers of docs/RELIABILITY.md")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use ddt_files::FileSystem;
use ddt_files::faults::{Fault, Job, Outcome, Run, Swept, sweep};
use ddt_files::npz::ArrayData;

use crate::image_archives;

/// Tries all faults in a folder that `prepare` fills.
fn swept(prepare: impl Fn(&Path), run: &Run<'_>) -> Swept {
    let place = tempfile::tempdir().unwrap();
    prepare(place.path());
    // The next opening of an archive clears up what a fault has kept.
    let counts = |it: &Path| !it.starts_with("images.npz.work");
    let swept = sweep(place.path(), &Fault::ALL, &Job { run, counts: &counts });
    swept.unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn checkpoints() {
    let tensors = |value: f32| {
        let large = Tensor::full(value, 40_000, &Device::Cpu).unwrap();
        BTreeMap::from([
            ("large".to_string(), large),
            ("one".to_string(), Tensor::new(1u8, &Device::Cpu).unwrap()),
        ])
    };
    let write = |system: &FileSystem, folder: &Path, value| -> Outcome {
        let path = folder.join("weights.safetensors");
        Ok(system.write_safetensors(&path, &tensors(value), &BTreeMap::new()).map(drop)?)
    };
    let old = |folder: &Path| write(&FileSystem::default(), folder, 1.0).unwrap();
    let swept = swept(old, &|system, folder| write(system, folder, 2.0));
    println!("weights: {swept}");
    assert!(swept.changes >= 7, "{swept}");
}

#[test]
fn arrays() {
    let write = |system: &FileSystem, folder: &Path, value: f64| -> Outcome {
        let values = vec![value; 20_000];
        let arrays = [("mu", &[20_000][..], ArrayData::F64(&values)), ("n", &[1], ArrayData::I64(&[3]))];
        Ok(system.write_npz(&folder.join("statistics.npz"), &arrays)?)
    };
    let old = |folder: &Path| write(&FileSystem::default(), folder, 1.0).unwrap();
    let swept = swept(old, &|system, folder| write(system, folder, 2.0));
    println!("arrays: {swept}");
    assert!(swept.changes >= 5, "{swept}");
}

#[test]
fn archives_of_images() {
    let prepare = |folder: &Path| fs::write(folder.join("other.npz"), "not to be touched").unwrap();
    let swept = swept(prepare, &|system, folder| {
        image_archives::Run::new(&folder.join("images.npz"), 10, 4).finish_on(system)?;
        Ok(())
    });
    println!("an archive of images: {swept}");
    assert!(swept.changes > 40, "{swept}");
}
