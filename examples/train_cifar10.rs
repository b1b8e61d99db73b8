//! Trains the demo: a small latent DDT on CIFAR-10 photos, resumed where it was left.
//!
//! Reads the photo archive once, encodes it with the embedded tiny autoencoder, caches the latents, and
//! prints loss, images a second and time left; at the end it writes the average weights in 16 bits.
//! Ctrl-C saves and stops; the same command goes on.

use std::{collections::BTreeMap, io::Write, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use ddt_examples::{
    assets, cifar_latents,
    cifar_latents::CifarLatents,
    generate::Interrupted,
    program::status,
    progress::{Cancel, say},
};
use ddt_flow::TimeSampling;
use ddt_model::{DdtConfig, DdtFile, Description};
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
    #[arg(long, default_value_t = 640_000)]
    images: u64,
    /// Images a step
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Learning rate on the plateau; may change when a run goes on
    #[arg(long, default_value_t = 7e-4)]
    lr: f64,
    /// Images over which the learning rate rises from 0
    #[arg(long, default_value_t = 12_800)]
    warmup: u64,
    /// Images over which it falls towards 0 at the end
    #[arg(long, default_value_t = 200_000)]
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

fn main() -> ExitCode {
    let args = Args::parse();
    status(Cancel::on_ctrl_c().and_then(|cancel| run(&args, &cancel)))
}

fn run(args: &Args, cancel: &Cancel) -> Result<String> {
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global().context("--threads")?;
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
    // Before the long encoding of the photos.
    cfg.validate()?;
    let cache = args.run.join("latents.safetensors");
    let latents = cifar_latents::load(&args.archive, &cache, &assets::tiny_encoder()?, cancel)?;
    let mut folder = RunFolder::open(&args.run)?;
    let mut trainer = Trainer::new(cfg, &sizes(&latents), &Device::Cpu)?;
    let resumed = folder.resume(&mut trainer, &latents.train)?;
    for it in &resumed.rejected {
        say(&format!("passed over a damaged checkpoint, {it}"));
    }
    if let Some(step) = resumed.step {
        print(&format!("going on from step {step}, {} images", trainer.images_seen()));
    }

    let mut meter = Meter::new(trainer.images_seen());
    let mut saved = Instant::now();
    while !trainer.finished() && !cancel.is_requested() {
        let report = trainer.step(&latents.train)?;
        meter.add(&report);
        if report.step % 20 == 0 {
            // The log holds what the step alone decides: the same wherever the run was resumed.
            folder.log(&serde_json::json!({
                "step": report.step, "images_seen": report.images_seen, "loss": report.loss,
                "grad_norm": report.grad_norm, "lr": report.lr, "skipped": report.skipped,
            }))?;
            let (loss, rate) = meter.read(report.images_seen);
            let left = args.images.saturating_sub(report.images_seen) as f64 / rate / 60.0;
            print(&format!(
                "step {:>6}  images {:>8}  loss {loss:.4}  gradient {:.3}  lr {:.2e}  {rate:.0} images/s  {left:.0} min left",
                report.step, report.images_seen, report.grad_norm, report.lr
            ));
        }
        if saved.elapsed().as_secs() >= args.save_every {
            folder.save(&trainer)?;
            saved = Instant::now();
        }
    }
    let checkpoint = folder.save(&trainer)?;
    print(&format!("saved {}", checkpoint.display()));
    if cancel.is_requested() {
        return Err(Interrupted.into());
    }
    export(args, &trainer, &latents)?;
    Ok(format!("wrote {}", args.out.display()))
}

/// Writes the average weights, and says what they are.
fn export(args: &Args, trainer: &Trainer, latents: &CifarLatents) -> Result<()> {
    if let Some(parent) = args.out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let network = trainer.averaged_network()?;
    let loss = |data, images| evaluate_loss(&network, data, images, TimeSampling::LogitNormal, &Device::Cpu);
    let (train, test) = (loss(&latents.train, 10_000)?, loss(&latents.test, 10_000)?);
    print(&format!(
        "average weights after {} images: loss {train:.4} on training photos, {test:.4} on test photos",
        trainer.images_seen()
    ));
    ensure!(train.is_finite() && test.is_finite(), "expected a finite loss; the weights are not written");
    let half = |(name, tensor): (String, Tensor)| {
        let half = tensor.to_dtype(DType::F16)?;
        let values: Vec<f32> = half.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let finite = values.iter().all(|it| it.is_finite());
        ensure!(finite, "{name} is not finite in 16 bits; the weights are not written");
        Ok((name, half))
    };
    let weights = trainer.averaged_weights()?.into_iter().map(half).collect::<Result<BTreeMap<_, _>>>()?;
    let metadata = BTreeMap::from([
        ("images_seen".to_owned(), trainer.images_seen().to_string()),
        ("test_loss".to_owned(), format!("{test:.4}")),
        ("train".to_owned(), serde_json::to_string(trainer.config())?),
        ("license".to_owned(), "MIT OR Apache-2.0".to_owned()),
    ]);
    let description = Description {
        config: trainer.network().config().clone(),
        classes: Some(latents.classes.clone()),
        latents: Some(latents.info.clone()),
        metadata,
    };
    DdtFile::write(&args.out, &description, &weights)?;
    Ok(())
}

/// Writes one line to standard output; a reader that went away is no reason to stop training.
fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
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
        let rate = (images_seen - self.images) as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        *self = Self::new(images_seen);
        (loss, rate)
    }
}
