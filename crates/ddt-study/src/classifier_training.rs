//! Training the classifier: photos in memory, cross-entropy, the trainer that networks are trained with.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use ddt::{OutputFile, duration_in_words, files::write_safetensors};
use ddt_train::{
    AdamWConfig, Alone, Batch, EpochOrder, Event, FileSystem, ImageSettings, LatentDataset, LatentEncoder,
    Loss, LrSchedule, Objective, Photos, Pick, RunFolder, StepAt, TrainConfig, TrainError, Trainer,
    encode_photos,
};
use serde_json::{Value, json};

use crate::{
    classifier::Classifier,
    study::{News, OnNews, tell},
};

/// Share of the target that is spread over all classes.
const SMOOTHING: f64 = 0.05;

/// Seconds between checkpoints, and steps between lines of the log.
const SAVE_EVERY: u64 = 120;
const LOG_EVERY: u64 = 20;

/// Trains the classifier that samples of CIFAR-10 are measured with, or resumes its run.
#[derive(Debug, Clone, clap::Args)]
pub struct ClassifierTraining {
    /// CIFAR-10 as image files: `train/<class>/<name>.jpg` and the same under test
    #[arg(long, value_name = "DIR", default_value = "out/cifar10")]
    pub photos: PathBuf,
    /// Folder of the run; the same folder resumes the run in it
    #[arg(long, value_name = "DIR", default_value = "out/train-classifier")]
    pub run: PathBuf,
    /// The safetensors file to write the weights to
    #[arg(long, value_name = "PATH", default_value = "out/cifar10-classifier.safetensors")]
    pub out: PathBuf,
    /// Passes through the training photos
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub epochs: u64,
    /// Seed of all randomness
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
}

impl ClassifierTraining {
    /// Trains, and writes the averaged weights in 16 bits; returns what was written and how often it is right.
    ///
    /// # Errors
    /// Photos that cannot be read, files that cannot be written; [`ddt::Error::Cancelled`] after a break, with
    /// everything saved.
    pub fn run(&self, on_news: &mut OnNews<'_>) -> Result<String> {
        let out = OutputFile::with_folder(&self.out, &["safetensors"]).context("--out")?;
        let mut folder = RunFolder::open(&self.run)?;
        let (train, test) = (self.data("train", true, on_news)?, self.data("test", false, on_news)?);
        let total_images = self.epochs * train.len() as u64;
        let cfg = TrainConfig {
            seed: self.seed,
            batch_size: 128,
            total_images,
            lr: LrSchedule {
                peak: 2e-3,
                warmup_images: 10_000,
                decay_images: total_images * 3 / 4,
                end: 0.0,
            },
            adamw: AdamWConfig { weight_decay: 0.05, ..AdamWConfig::PAPER },
            ema_decays: vec![0.995],
            ..TrainConfig::paper()
        };
        let mut trainer = Trainer::new(cfg, train.sha256(), &Device::Cpu, Classification::new)?;
        for it in folder.resume(&mut trainer)?.rejected {
            tell(on_news, News::Message(format!("ignored a damaged checkpoint, {it}")))?;
        }
        let order = EpochOrder::new(self.seed, train.len(), true)?;
        let (mut since, mut seen_then, mut losses) = (Instant::now(), trainer.images_seen(), Vec::new());
        let (mut saved, mut go_on) = (Instant::now(), Ok(()));
        while !trainer.finished() && go_on.is_ok() {
            let report = trainer.step(|positions| train.batch(&order.picks(positions), &Device::Cpu))?;
            losses.push(report.loss);
            let (seen, work) = (report.images_seen, "training on images");
            go_on = tell(on_news, News::Progress { work, done: seen, total: total_images });
            if report.step.is_multiple_of(LOG_EVERY) {
                folder.log(&report.record())?;
                let loss = losses.iter().sum::<f64>() / losses.len() as f64;
                let rate = (seen - seen_then) as f64 / since.elapsed().as_secs_f64().max(1e-9);
                let left = duration_in_words(total_images.saturating_sub(seen) as f64 / rate);
                let line = format!("step {:>6}  images {seen:>9}  loss {loss:.4}  {left} left", report.step);
                go_on = go_on.and(tell(on_news, News::Message(line)));
                (since, seen_then) = (Instant::now(), seen);
                losses.clear();
            }
            if saved.elapsed().as_secs() >= SAVE_EVERY {
                folder.save(&trainer)?;
                saved = Instant::now();
            }
        }
        folder.save(&trainer)?;
        go_on?;

        let weights = cast(trainer.averaged_weights(0)?, DType::F16)?;
        // Counted with the very values that are written.
        let vb = VarBuilder::from_tensors(
            cast(weights.clone(), DType::F32)?.into_iter().collect(),
            DType::F32,
            &Device::Cpu,
        );
        let right = accuracy(&Classifier::new(vb)?, &test)?;
        let metadata = BTreeMap::from([
            ("network".to_owned(), "cifar10-classifier".to_owned()),
            ("images_seen".to_owned(), trainer.images_seen().to_string()),
            ("test_accuracy".to_owned(), format!("{right:.4}")),
        ]);
        write_safetensors(out.target(), &weights, &metadata)?;
        Ok(format!(
            "right on {:.2} % of {} test photos\nwrote {}",
            100.0 * right,
            test.len(),
            out.path().display()
        ))
    }

    /// The photos of a split as pixels.
    fn data(&self, split: &str, flips: bool, on_news: &mut OnNews<'_>) -> Result<LatentDataset> {
        let side = Classifier::SIDE as u32;
        let images = ImageSettings { flips, ..ImageSettings::plain(self.photos.join(split), side) };
        let photos = Photos::open(&images.train, &images).context("--photos")?;
        let found = photos.folder().report();
        tell(on_news, News::Message(format!("{}: {found}", images.train.display())))?;
        let place = self.run.join("pixels").join(split);
        let cache = encode_photos(
            &Alone,
            &FileSystem::default(),
            &photos,
            &place,
            &LatentEncoder::pixels(),
            None,
            &mut |event| match event {
                Event::Encoding(done, total) => {
                    on_news(News::Progress { work: "reading photos", done, total })
                }
                _ => std::ops::ControlFlow::Continue(()),
            },
        )?;
        Ok(LatentDataset::cached(cache.normalised_with(&[0.0; 3], &[1.0; 3])?))
    }
}

fn cast(weights: BTreeMap<String, Tensor>, dtype: DType) -> candle_core::Result<BTreeMap<String, Tensor>> {
    weights.into_iter().map(|(name, it)| Ok((name, it.to_dtype(dtype)?))).collect()
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

/// The classifier with its cross-entropy.
#[derive(Debug)]
struct Classification {
    network: Classifier,
}

impl Classification {
    fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self { network: Classifier::new(vb)? })
    }
}

impl Objective for Classification {
    type Batch = Batch;

    fn identity(&self) -> Value {
        json!({ "network": "cifar10-classifier", "smoothing": SMOOTHING })
    }

    fn loss(&self, batch: &Batch, _: StepAt) -> Result<Loss, TrainError> {
        let logits = self.network.forward(&batch.latents)?.logits;
        let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        let (hit, rest) = (1.0 - SMOOTHING, SMOOTHING / Classifier::CLASSES as f64);
        let share = |label: &u32, class| (rest + if *label == class { hit } else { 0.0 }) as f32;
        let target: Vec<f32> = batch
            .labels
            .iter()
            .flat_map(|label| (0..Classifier::CLASSES as u32).map(move |it| share(label, it)))
            .collect();
        let target = Tensor::from_vec(target, (batch.labels.len(), Classifier::CLASSES), logits.device())?;
        let total = (log_p * target)?.sum(1)?.mean_all()?.neg()?.to_dtype(DType::F32)?;
        Ok(Loss { total, parts: Vec::new() })
    }
}
