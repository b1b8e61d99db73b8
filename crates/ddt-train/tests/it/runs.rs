//! A run small enough to repeat many times.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;
use ddt_files::{FileSystem, sha256_file};
use ddt_flow::{CounterNoise, Purpose};
use ddt_model::{DdtConfig, NetworkConfig};
use ddt_train::{
    EpochOrder, FlowConfig, FlowMatching, LatentDataset, LrSchedule, Resumed, RunFolder, StepReport,
    TrainConfig, TrainError, Trainer,
};

pub(crate) fn sizes() -> DdtConfig {
    DdtConfig {
        in_channels: 2,
        patch_size: 1,
        hidden_size: 16,
        num_heads: 2,
        num_encoder_blocks: 1,
        num_decoder_blocks: 1,
        num_classes: 2,
    }
}

/// Seven images of two classes: each class a constant, and a little noise.
pub(crate) fn data() -> LatentDataset {
    images(2, 9)
}

/// The same of another size, with other noise.
pub(crate) fn images(side: usize, seed: u64) -> LatentDataset {
    let noise = |image| CounterNoise::new(seed, Purpose::SampleNoise, 0, image).normal(2 * side * side);
    let labels: Vec<u32> = (0..7).map(|it| it % 2).collect();
    let latents = (0..7u64).flat_map(|image| {
        let level = if image % 2 == 0 { 1.0 } else { -1.0 };
        noise(image).into_iter().map(move |it| level + 0.1 * it)
    });
    LatentDataset::new(latents.collect(), labels, (2, side, side)).unwrap()
}

pub(crate) fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        batch_size: 4,
        total_images: 4 * steps,
        lr: LrSchedule { peak: 3e-3, warmup_images: 8, decay_images: 16, end: 0.0 },
        ema_decays: vec![0.9, 0.5],
        ..TrainConfig::paper()
    }
}

pub(crate) fn trainer(steps: u64) -> Trainer<FlowMatching> {
    trainer_of(config(steps), &sizes(), &data())
}

pub(crate) fn trainer_of(cfg: TrainConfig, sizes: &DdtConfig, data: &LatentDataset) -> Trainer<FlowMatching> {
    let network = NetworkConfig::from(sizes.clone());
    let build = |vb: candle_nn::VarBuilder| FlowMatching::new(&network, FlowConfig::PAPER, vb);
    Trainer::new(cfg, data.sha256(), &Device::Cpu, build).unwrap()
}

/// One step on the next images.
pub(crate) fn step(
    trainer: &mut Trainer<FlowMatching>,
    data: &LatentDataset,
) -> Result<StepReport, TrainError> {
    let order = EpochOrder::new(trainer.config().seed, data.len(), false)?;
    trainer.step(|positions| data.batch(&order.picks(positions), &Device::Cpu))
}

/// Trains to the end, saving every third step, as long as `go_on` says so; logs every step.
pub(crate) fn train(folder: &Path, steps: u64, go_on: impl FnMut(u64) -> bool) {
    train_on(&data(), trainer(steps), folder, go_on);
}

pub(crate) fn train_on(
    data: &LatentDataset,
    trainer: Trainer<FlowMatching>,
    folder: &Path,
    go_on: impl FnMut(u64) -> bool,
) {
    try_train(&FileSystem::default(), data, trainer, folder, go_on).unwrap();
}

pub(crate) fn try_train(
    system: &FileSystem,
    data: &LatentDataset,
    mut trainer: Trainer<FlowMatching>,
    folder: &Path,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Resumed, TrainError> {
    let mut run = RunFolder::open_on(system, folder)?;
    let resumed = run.resume(&mut trainer)?;
    while !trainer.finished() {
        let report = step(&mut trainer, data)?;
        run.log(&serde_json::json!({ "step": report.step, "loss": report.loss, "norm": report.grad_norm }))?;
        if report.step.is_multiple_of(3) {
            run.save(&trainer)?;
        }
        if !go_on(report.step) {
            return Ok(resumed);
        }
    }
    run.save(&trainer)?;
    Ok(resumed)
}

/// Copies all that is in a folder to one that may be there.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Hashes of the last checkpoint's files, and of the log.
pub(crate) fn outcome(folder: &Path) -> Vec<(String, String)> {
    let last = checkpoints(folder).pop().unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(&last).unwrap().map(|it| it.unwrap().path()).collect();
    files.push(folder.join("log.jsonl"));
    files.sort();
    let name = |it: &PathBuf| it.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|it| (name(it), sha256_file(it).unwrap())).collect()
}

/// Everything in the folder of checkpoints, sorted; hidden leftovers come first.
pub(crate) fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder.join("checkpoints")).unwrap().map(|it| it.unwrap().path()).collect();
    found.sort();
    found
}

/// Their names.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let name = |it: &PathBuf| it.file_name().unwrap().to_string_lossy().into_owned();
    checkpoints(folder).iter().map(name).collect()
}
