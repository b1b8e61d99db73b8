//! `ddt verify`, on caches that lack files or hold other ones.

use std::{fs, os::unix::fs::symlink, path::Path};

use ddt::hub::{HubFile, Release};

use crate::{refuse, succeed};

/// Puts a file into the cache of `folder` as the hub's tools do, its blob under a name of choice.
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
    symlink(Path::new("../../blobs").join(blob), link).unwrap();
}

#[test]
fn missing_and_damaged_files_are_named_with_the_command_that_fetches_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let verify = ["verify", "--preset", "ddt-xl2-256"];
    let release = Release::DdtXl2R256;
    refuse(folder, &["verify"], 2, &["--preset"]);
    refuse(folder, &["verify", "--preset", "ddt-b2"], 2, &["ddt-xl2-256 or ddt-xl2-512"]);
    refuse(folder, &verify, 1, &["DDT-XL-22en6de-R256/model.ckpt", "ddt fetch ddt-xl2-256"]);
    put(folder, &release.network(), "model", ddt_demo::NETWORK);
    refuse(folder, &verify, 1, &["sd-vae-ft-ema", "ddt fetch ddt-xl2-256"]);

    // A blob whose bytes are not those of its name.
    let blob = "c".repeat(64);
    put(folder, &release.autoencoder(), &blob, ddt_demo::TINY_DECODER);
    let expected = format!("expected sha256:{blob}");
    refuse(folder, &verify, 1, &[&expected, "fetch it again", &format!("blobs/{blob}")]);

    // The demo instead of the published network: its sizes are others.
    put(folder, &release.autoencoder(), "autoencoder", ddt_demo::TINY_DECODER);
    refuse(folder, &verify, 1, &["reading the network", "expected a network of", "hidden_size: 1152"]);
    assert!(succeed(folder, &["doctor"]).contains("ddt-xl2-256: network fetched, autoencoder fetched"));
}
