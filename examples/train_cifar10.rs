//! Trains the demo: a small latent DDT on CIFAR-10 photos, resumed where it was left.
//!
//! Reads the photo archive once, encodes it with the embedded tiny autoencoder, caches the latents, and
//! prints loss, images a second and time left; at the end it writes the average weights in 16 bits.

#![allow(clippy::print_stdout, reason = "a command line prints")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use ddt_examples::{assets, cifar_latents, cifar_latents::CifarLatents, progress::Cancel};
use ddt_flow::TimeSampling;
use ddt_model::{Ddt, DdtConfig};
use ddt_train::{AdamWConfig, LrSchedule, RunFolder, StepReport, TrainConfig, Trainer, evaluate_loss};

/// Train the demo checkpoint on CIFAR-10, or go on with a run that was stopped.
#[derive(Parser)]
struct Args {
    /// Archive of CIFAR-10 as image files in train/<class>/ and test/<class>/ (.tar.gz)
    #[arg(long, default_value = "../shared/data/cifar10-images.tar.gz")]
    archive: PathBuf,
    /// Folder of the run: latents, checkpoints, log; the same folder goes on with the run in it
    #[arg(long, default_value = "out/train-cifar10")]
    run: PathBuf,
    /// Where to write the average weights, 16 bits each
    #[arg(long, default_value = "out/ddt-cifar10.safetensors")]
    out: PathBuf,
    /// Images to see in all; may change when a run goes on
    #[arg(long, default_value_t = 1_280_000)]
    images: u64,
    /// Images a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Learning rate on the plateau; may change when a run goes on
    #[arg(long, default_value_t = 6e-4)]
    lr: f64,
    /// Images over which the learning rate rises from 0
    #[arg(long, default_value_t = 25_600)]
    warmup: u64,
    /// Images over which it falls to 0 at the end
    #[arg(long, default_value_t = 256_000)]
    decay: u64,
    /// Decay of the average weights, a step
    #[arg(long, default_value_t = 0.999)]
    ema: f64,
    /// Root of all randomness
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Seconds between checkpoints
    #[arg(long, default_value_t = 300)]
    save_every: u64,
}

/// 9.7 million parameters: eight blocks of 256, six of them the condition encoder's.
fn sizes(latents: &CifarLatents) -> DdtConfig {
    DdtConfig {
        in_channels: latents.info.mean.len(),
        patch_size: 1,
        hidden_size: 256,
        num_heads: 4,
        num_encoder_blocks: 6,
        num_decoder_blocks: 2,
        num_classes: latents.classes.len(),
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let cancel = Cancel::on_ctrl_c()?;
    let latents =
        cifar_latents::load(&args.archive, &args.run.join("latents.safetensors"), &assets::tiny_encoder()?)?;

    let cfg = TrainConfig {
        seed: args.seed,
        batch_size: args.batch,
        total_images: args.images,
        lr: LrSchedule { peak: args.lr, warmup_images: args.warmup, decay_images: args.decay },
        adamw: AdamWConfig::PAPER,
        ema_decays: vec![args.ema],
        label_dropout: 0.1,
        times: TimeSampling::LogitNormal,
        timeshift: 1.0,
    };
    let mut folder = RunFolder::open(&args.run)?;
    let mut trainer = Trainer::new(cfg, &sizes(&latents), &Device::Cpu)?;
    if folder.resume(&mut trainer)? {
        println!("going on from {} images", trainer.images_seen());
    }

    let mut meter = Meter::new(trainer.images_seen());
    let mut saved = Instant::now();
    while !trainer.finished() && !cancel.is_requested() {
        let report = trainer.step(&latents.train)?;
        meter.add(&report);
        if report.step % 20 == 0 {
            let (loss, rate) = meter.read(report.images_seen);
            folder.log(&serde_json::json!({
                "step": report.step, "images_seen": report.images_seen, "loss": loss,
                "grad_norm": report.grad_norm, "lr": report.lr, "skipped": report.skipped,
            }))?;
            let left =
                Duration::from_secs_f64((args.images - report.images_seen.min(args.images)) as f64 / rate);
            println!(
                "step {:>6}  images {:>8}  loss {loss:.4}  gradient {:.3}  lr {:.2e}  {rate:.0} images/s  {} min left",
                report.step,
                report.images_seen,
                report.grad_norm,
                report.lr,
                left.as_secs() / 60
            );
        }
        if saved.elapsed().as_secs() >= args.save_every {
            folder.save(&trainer)?;
            saved = Instant::now();
        }
    }
    let checkpoint = folder.save(&trainer)?;
    println!("saved {}", checkpoint.display());
    export(&args, &trainer, &latents)
}

/// Writes the average weights, and says what they are.
fn export(args: &Args, trainer: &Trainer, latents: &CifarLatents) -> Result<()> {
    if let Some(parent) = args.out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let network = trainer.averaged_network()?;
    let loss = |data, images| evaluate_loss(&network, data, images, TimeSampling::LogitNormal, &Device::Cpu);
    let (train, test) = (loss(&latents.train, 10_000)?, loss(&latents.test, 10_000)?);
    println!(
        "average weights after {} images: loss {train:.4} on training photos, {test:.4} on test photos",
        trainer.images_seen()
    );
    let half = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(DType::F16)?));
    let weights = trainer.averaged_weights()?.into_iter().map(half).collect::<Result<BTreeMap<_, _>>>()?;
    let metadata = BTreeMap::from([
        ("images_seen".to_owned(), trainer.images_seen().to_string()),
        ("test_loss".to_owned(), format!("{test:.4}")),
        ("train".to_owned(), serde_json::to_string(trainer.config())?),
        ("license".to_owned(), "MIT OR Apache-2.0".to_owned()),
    ]);
    let cfg = trainer.network().config();
    Ddt::save(&args.out, cfg, &weights, Some(&latents.classes), Some(&latents.info), &metadata)?;
    println!("wrote {}", args.out.display());
    Ok(())
}

/// Mean loss and rate since it was read last.
struct Meter {
    since: Instant,
    images: u64,
    losses: Vec<f64>,
}

impl Meter {
    fn new(images: u64) -> Self {
        Self { since: Instant::now(), images, losses: Vec::new() }
    }

    fn add(&mut self, report: &StepReport) {
        self.losses.push(report.loss);
    }

    fn read(&mut self, images_seen: u64) -> (f64, f64) {
        let loss = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        let rate = (images_seen - self.images) as f64 / self.since.elapsed().as_secs_f64();
        *self = Self::new(images_seen);
        (loss, rate)
    }
}
