//! A run from its settings to its weights.

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use ddt_flow::TimeSampling;
use ddt_model::{DdtFile, LatentInfo, NetworkConfig};
use ddt_train::{EpochOrder, FlowMatching, LatentCache, LatentDataset, RunFolder, Trainer, evaluate_loss};

use crate::{
    generate::Interrupted,
    progress::{Cancel, say},
    train::{
        batches::{Batches, LiveFeatures},
        export::export,
        frozen::{Encoder, Extractor},
        photos::{Photos, cached},
        samples,
        settings::Settings,
        watch::{Log, Meter, plot_losses, print},
    },
};

/// Trains as the settings say, or goes on where the run was stopped, and writes the averaged weights to `out`.
///
/// # Errors
///
/// Settings, photos or weights that do not fit; [`Interrupted`] after `cancel`, with everything saved.
pub fn run(settings: &Settings, out: &Path, cancel: &Cancel) -> Result<String> {
    let mut folder = RunFolder::open(&settings.run)?;
    let encoder = Encoder::load(&settings.autoencoder)?;
    let photos = Photos::open(&settings.images.train, &settings.images)?;
    let classes = photos.classes();
    let shape = encoder.latent_shape(settings.images.size)?;
    let extractor = settings.alignment.as_ref().map(Extractor::load).transpose()?;
    let features = extractor.as_ref().map(|it| it.shape(settings.images.size)).transpose()?;
    let network = settings.network(shape.0, classes.len())?;
    let patch = network.sizes.patch_size;
    ensure!(
        shape.1.is_multiple_of(patch),
        "images.size: {} px are latents of {} x {}, expected a multiple of the network's patch of {patch}",
        settings.images.size,
        shape.1,
        shape.2
    );
    let flow = settings.flow_config(features.map_or(1, |it| it.dim));

    let cached_features =
        extractor.as_ref().filter(|_| settings.alignment.as_ref().is_some_and(|it| it.cache));
    let place = settings.cache();
    let cache = cached(&photos, &settings.images, &place.join("train"), &encoder, cached_features, cancel)?;
    let info = latent_info(&encoder, &cache, shape);
    let data = normalised(cache, &info)?;
    let test = match &settings.images.test {
        None => None,
        Some(path) => {
            let photos = Photos::open(path, &settings.images)?;
            ensure!(photos.classes() == classes, "images.test: expected the classes of images.train");
            let cache = cached(&photos, &settings.images, &place.join("test"), &encoder, None, cancel)?;
            Some(normalised(cache, &info)?)
        }
    };

    let mut trainer = Trainer::new(settings.train.clone(), data.sha256(), &Device::Cpu, |vb: VarBuilder| {
        FlowMatching::new(&network, flow, vb)
    })?;
    let resumed = folder.resume(&mut trainer)?;
    for it in &resumed.rejected {
        say(&format!("passed over a damaged checkpoint, {it}"));
    }
    match (resumed.step, &settings.start) {
        (Some(step), _) => print(&format!("going on from step {step}, {} images", trainer.images_seen())),
        (None, Some(path)) => {
            trainer.start_from(&start_weights(path, &network)?)?;
            print(&format!("starting from {}", path.display()));
        }
        (None, None) => {}
    }

    let order = EpochOrder::new(settings.train.seed, data.len(), settings.images.flips)?;
    let live = extractor.as_ref().filter(|_| cached_features.is_none());
    let live = live.map(|it| LiveFeatures::start(&photos, &order, it, trainer.images_seen())).transpose()?;
    let mut batches = Batches::new(&data, &order, live);
    train(settings, &mut trainer, &mut folder, &mut batches, test.as_ref(), (&info, &classes), cancel)?;

    if cancel.is_requested() {
        return Err(Interrupted.into());
    }
    export(out, &trainer, test.as_ref(), &classes, &info)?;
    let plot = settings.run.join("loss.svg");
    std::fs::write(&plot, plot_losses(&settings.run)?)
        .with_context(|| format!("cannot write {}", plot.display()))?;
    Ok(format!("wrote {} and {}", out.display(), plot.display()))
}

/// The loop, until the end or until `cancel`; saves at the end of either.
fn train(
    settings: &Settings,
    trainer: &mut Trainer<FlowMatching>,
    folder: &mut RunFolder,
    batches: &mut Batches<'_>,
    test: Option<&LatentDataset>,
    (info, classes): (&LatentInfo, &[String]),
    cancel: &Cancel,
) -> Result<()> {
    let watch = &settings.watch;
    let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
    let mut log = Log::open(&settings.run, watch.tensorboard)?;
    let mut meter = Meter::new(trainer.images_seen());
    let mut saved = Instant::now();
    while !trainer.finished() && !cancel.is_requested() {
        let report = trainer.step(|positions| batches.next(positions))?;
        meter.add(&report);
        if due(report.step, watch.log_every) {
            log.step(folder, &report)?;
            meter.print(&report, settings.train.total_images);
        }
        if let Some(test) = test.filter(|_| due(report.step, watch.test_every)) {
            let average = samples::averaged(trainer, 0)?;
            let times = TimeSampling::LogitNormal;
            let loss = evaluate_loss(average.as_ref(), test, watch.test_images, times, &Device::Cpu)?;
            log.test(folder, (report.step, report.images_seen), loss)?;
            print(&format!("step {:>6}  averaged weights: loss {loss:.4} on test images", report.step));
        }
        if due(report.step, watch.samples_every) {
            let path = settings.run.join(format!("samples/step-{:010}.png", report.step));
            samples::draw(trainer, settings, info, classes, &path)?;
        }
        if saved.elapsed().as_secs() >= watch.save_every_seconds {
            folder.save(trainer)?;
            saved = Instant::now();
        }
    }
    let checkpoint = folder.save(trainer)?;
    print(&format!("saved {}", checkpoint.display()));
    Ok(())
}

/// What the latents are, as the file of weights will say it.
fn latent_info(
    encoder: &Encoder,
    cache: &LatentCache,
    (c, height, width): (usize, usize, usize),
) -> LatentInfo {
    let (mean, std) = cache.channel_statistics();
    let round = |values: &[f64]| values.iter().map(|it| *it as f32).collect();
    let (mean, std) =
        if encoder.normalised { (round(mean), round(std)) } else { (vec![0.0; c], vec![1.0; c]) };
    LatentInfo { autoencoder: encoder.name.to_owned(), height, width, mean, std }
}

fn normalised(cache: LatentCache, info: &LatentInfo) -> Result<LatentDataset> {
    let widen = |values: &[f32]| values.iter().map(|it| f64::from(*it)).collect::<Vec<f64>>();
    Ok(LatentDataset::cached(cache.normalised_with(&widen(&info.mean), &widen(&info.std))?))
}

/// The weights of a file that a run starts from; it may be of another resolution, not of other sizes.
fn start_weights(path: &Path, network: &NetworkConfig) -> Result<BTreeMap<String, Tensor>> {
    let file = DdtFile::open(path).context("start")?;
    // Files that do not say their sizes are read as this network.
    let sizes = if file.config().is_none() { Some(&network.sizes) } else { None };
    file.weights(sizes).context("start")
}
