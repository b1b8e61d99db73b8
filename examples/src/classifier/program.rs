//! Training the classifier, and how often it is right.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context, Result};
use candle_core::{D, DType, Device};
use candle_nn::VarBuilder;
use ddt_files::write_safetensors;
use ddt_train::{
    AdamWConfig, EpochOrder, Event, ImageSettings, LatentDataset, LatentEncoder, LrSchedule, Photos, Pick,
    Precision, RunFolder, TrainConfig, TrainError, Trainer, encode_photos,
};

use crate::{
    classifier::{
        network::{Classifier, SIDE},
        objective::Classification,
    },
    generate::Interrupted,
    progress::{Cancel, Counting, say},
    train::report::{Meter, print},
};

/// Seconds between checkpoints, and steps between lines of the log.
const SAVE_EVERY: u64 = 120;
const LOG_EVERY: u64 = 20;

/// Where everything is, and how long to train.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Folder with `train` and `test`, each of class folders.
    pub photos: &'a Path,
    /// Folder of the run.
    pub run: &'a Path,
    /// Where the weights go.
    pub out: &'a Path,
    /// Passes through the training photos.
    pub epochs: u64,
    /// Root of all randomness.
    pub seed: u64,
}

/// Trains, or goes on where the run was stopped; writes the averaged weights in 16 bits.
///
/// # Errors
///
/// Photos that cannot be read, files that cannot be written; [`Interrupted`] after `cancel`.
pub fn run(job: &Job<'_>, cancel: &Cancel) -> Result<String> {
    let mut folder = RunFolder::open(job.run)?;
    let data = |name: &str, flips: bool| -> Result<LatentDataset> {
        let images = ImageSettings { flips, ..ImageSettings::plain(job.photos.join(name), SIDE as u32) };
        let photos = Photos::open(&images.train, &images)?;
        let (encoder, place) = (LatentEncoder::pixels(), job.run.join("pixels").join(name));
        let mut progress = Counting::start("encoding", photos.folder().len() as u64);
        let cache = encode_photos(&photos, &images, &place, &encoder, None, &mut |event| {
            if let Event::Encoding(done, _) = event {
                progress.reached(done);
            }
            cancel.flow()
        });
        match cache {
            Err(TrainError::Stopped) => Err(Interrupted.into()),
            cache => Ok(LatentDataset::cached(cache?.normalised_with(&[0.0; 3], &[1.0; 3])?)),
        }
    };
    let (train, test) = (data("train", true)?, data("test", false)?);
    let total_images = job.epochs * train.len() as u64;
    let cfg = TrainConfig {
        seed: job.seed,
        batch_size: 128,
        micro_batch: None,
        precision: Precision::F32,
        total_images,
        lr: LrSchedule { peak: 2e-3, warmup_images: 10_000, decay_images: total_images * 3 / 4 },
        adamw: AdamWConfig { weight_decay: 0.05, ..AdamWConfig::PAPER },
        ema_decays: vec![0.995],
    };
    let mut trainer = Trainer::new(cfg, train.sha256(), &Device::Cpu, Classification::new)?;
    for it in folder.resume(&mut trainer)?.rejected {
        say(&format!("ignored a damaged checkpoint, {it}"));
    }
    let order = EpochOrder::new(job.seed, train.len(), true)?;
    let (mut meter, mut saved) = (Meter::new(trainer.images_seen()), Instant::now());
    while !trainer.finished() && !cancel.is_requested() {
        let report = trainer.step(|positions| train.batch(&order.picks(positions), &Device::Cpu))?;
        meter.add(&report);
        if report.step % LOG_EVERY == 0 {
            folder.log(&report.record())?;
            meter.print(&report, total_images);
        }
        if saved.elapsed().as_secs() >= SAVE_EVERY {
            folder.save(&trainer)?;
            saved = Instant::now();
        }
    }
    folder.save(&trainer)?;
    if cancel.is_requested() {
        return Err(Interrupted.into());
    }
    let weights = trainer.averaged_weights(0)?;
    let half = |(name, it): (String, candle_core::Tensor)| Ok((name, it.to_dtype(DType::F16)?));
    let weights = weights.into_iter().map(half).collect::<candle_core::Result<BTreeMap<_, _>>>()?;
    let rounded = weights.iter().map(|it| Ok((it.0.clone(), it.1.to_dtype(DType::F32)?)));
    let rounded = rounded.collect::<candle_core::Result<_>>()?;
    let network = Classifier::new(VarBuilder::from_tensors(rounded, DType::F32, &Device::Cpu))?;
    let right = accuracy(&network, &test)?;
    print(&format!("right on {:.2} % of {} test photos", 100.0 * right, test.len()));
    let metadata = BTreeMap::from([
        ("network".to_owned(), "cifar10-classifier".to_owned()),
        ("images_seen".to_owned(), trainer.images_seen().to_string()),
        ("test_accuracy".to_owned(), format!("{right:.4}")),
    ]);
    if let Some(parent) = job.out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    write_safetensors(job.out, &weights, &metadata)?;
    Ok(format!("wrote {}", job.out.display()))
}

/// Share of a dataset's photos whose class is the one the network finds likeliest.
fn accuracy(network: &Classifier, data: &LatentDataset) -> Result<f64> {
    let mut right = 0;
    let all: Vec<Pick> = (0..data.len()).map(|image| Pick { image, flipped: false }).collect();
    for picks in all.chunks(250) {
        let batch = data.batch(picks, &Device::Cpu)?;
        let found: Vec<u32> = network.forward(&batch.latents)?.logits.argmax(D::Minus1)?.to_vec1()?;
        right += found.iter().zip(&batch.labels).filter(|it| it.0 == it.1).count();
    }
    Ok(right as f64 / data.len() as f64)
}
