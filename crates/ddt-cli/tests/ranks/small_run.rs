//! A small run: its photos and settings, and what it leaves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ddt::{
    files::sha256_file,
    picture::{Rgb8, encode_png},
};

pub(crate) const STEPS: u64 = 20;

/// Photos of two classes and settings: 8 micro-batches a step, a line of the log for each.
pub(crate) fn begin(folder: &Path) {
    for (class, red) in [("cat", 40u8), ("dog", 200)] {
        let class = folder.join("photos").join(class);
        fs::create_dir_all(&class).unwrap();
        for i in 0..80u32 {
            let pixels =
                (0..20 * 16u32).flat_map(|at| [red, (at % 20 * 5 + i) as u8, (at / 20 * 9 + 3 * i) as u8]);
            let photo = Rgb8::new(20, 16, pixels.collect()).unwrap();
            fs::write(class.join(format!("{i:02}.png")), encode_png(&photo, &[]).unwrap()).unwrap();
        }
    }
    let settings = format!(
        r#"
        run = "run"
        images = {{ train = "photos", test = "photos", size = 16, flips = true }}
        autoencoder = {{ kind = "pixels" }}
        network = {{ patch_size = 4, hidden_size = 32, num_heads = 2, num_encoder_blocks = 1, num_decoder_blocks = 1 }}
        [train]
        batch_size = 16
        micro_batch = 2
        total_images = {}
        ema_decays = [0.5, 0.9]
        [watch]
        log_every = 1
        test_every = 7
        samples_every = 10
        save_every_seconds = 0
        "#,
        16 * STEPS
    );
    fs::write(folder.join("settings.toml"), settings).unwrap();
}

/// Hashes of the weights, the last checkpoint, the log and the cache.
pub(crate) fn outcome(folder: &Path) -> Vec<(PathBuf, String)> {
    let run = folder.join("run");
    let last = format!("checkpoints/step-{STEPS:010}");
    let mut files = vec![run.join("weights.safetensors"), run.join("log.jsonl")];
    for inner in [last.as_str(), "latents/train", "latents/test"] {
        files.extend(fs::read_dir(run.join(inner)).unwrap().map(|it| it.unwrap().path()));
    }
    files.sort();
    files.iter().map(|it| (it.strip_prefix(&run).unwrap().to_owned(), sha256_file(it).unwrap())).collect()
}

pub(crate) fn signal(name: &str, id: u32) {
    Command::new("kill").args(["-s", name, &id.to_string()]).status().unwrap();
}
