//! One training undisturbed and the same one killed every few minutes, until both end at the same step.

use std::fs;

use anyhow::{Context, Result, ensure};
use ddt_picture::{Rgb8, encode_png};

use super::processes::Soak;

const SETTINGS: &str = r#"
run = "run"
images = { train = "photos", size = 32, flips = true }
autoencoder = { kind = "tiny-flux2" }
network = { patch_size = 1, hidden_size = 128, num_heads = 4, num_encoder_blocks = 3, num_decoder_blocks = 1 }
train = { batch_size = 32, total_images = 1_000_000_000, ema_decays = [0.99, 0.9] }
watch = { log_every = 1, save_every_seconds = 30, samples_every = 1000, tensorboard = true }
"#;
const BATCH: u64 = 32;
const UNDISTURBED: &str = "training, undisturbed";
const KILLED: &str = "training, killed";

pub(super) fn run(soak: &Soak) -> Result<Vec<String>> {
    for folder in ["training", "training-killed"] {
        photos(soak, folder)?;
    }
    let line = "train settings.toml --threads 1";
    let undisturbed = soak.start(UNDISTURBED, "training", line)?;
    let mut kills = 0;
    loop {
        let mut killed = soak.start(KILLED, "training-killed", line)?;
        ensure!(soak.wait(60..240, &mut killed)?, "a training ended: {}", killed.log.display());
        if soak.is_over() {
            killed.interrupt()?;
            break;
        }
        killed.kill()?;
        kills += 1;
    }
    undisturbed.interrupt()?;
    let steps = [newest(soak, "training")?, newest(soak, "training-killed")?];
    let last = steps[0].max(steps[1]);
    let line = format!("{line} --images {}", last * BATCH);
    soak.finish(UNDISTURBED, "training", &line)?;
    soak.finish(KILLED, "training-killed", &line)?;
    let checkpoint = format!("run/checkpoints/step-{last:010}");
    let mut files = vec!["run/log.jsonl".to_owned(), "run/weights.safetensors".to_owned()];
    for entry in fs::read_dir(soak.folder.join("training").join(&checkpoint))? {
        files.push(format!("{checkpoint}/{}", entry?.file_name().to_string_lossy()));
    }
    soak.compare("training", "training-killed", &files)?;
    Ok(vec![format!(
        "training: {kills} kills; at step {last} weights, log and all {} files of the checkpoint have the bytes of \
         the undisturbed run (the end of the soak was at steps {} and {})",
        files.len() - 2,
        steps[0],
        steps[1]
    )])
}

fn photos(soak: &Soak, folder: &str) -> Result<()> {
    let folder = soak.folder.join(folder);
    for label in 0..2_u8 {
        let class = folder.join(format!("photos/{label}"));
        fs::create_dir_all(&class)?;
        for number in 0..256_u32 {
            let pixel = |at: u32| {
                let (x, y) = (at % 32, at / 32);
                [100 * label + 50, (7 * x + number) as u8, (5 * y + 3 * number) as u8]
            };
            let picture = Rgb8::new(32, 32, (0..32 * 32).flat_map(pixel).collect())?;
            fs::write(class.join(format!("{number:03}.png")), encode_png(&picture, &[])?)?;
        }
    }
    Ok(fs::write(folder.join("settings.toml"), SETTINGS)?)
}

/// Step of the newest checkpoint.
fn newest(soak: &Soak, folder: &str) -> Result<u64> {
    let mut newest = None;
    for entry in fs::read_dir(soak.folder.join(folder).join("run/checkpoints"))? {
        let name = entry?.file_name();
        let step = name.to_string_lossy().strip_prefix("step-").and_then(|it| it.parse::<u64>().ok());
        newest = newest.max(step);
    }
    newest.context("no checkpoint")
}
