//! A run from its settings to its weights.

use std::{ops::ControlFlow, path::Path, time::Instant};

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use ddt_flow::{EULER, Guidance, TimeGrid, TimeSampling, noise_batch};
use ddt_model::{LatentInfo, NetworkConfig, SampleOptions, sample};
use serde_json::json;

use crate::{
    batch::{Batch, EpochOrder},
    data::LatentDataset,
    error::TrainError,
    event::{Event, OnEvent, Samples},
    flow_matching::{FlowMatching, evaluate_loss},
    latent_cache::LatentCache,
    photos::{Frozen, LatentEncoder, LiveFeatures, Photos, encode_photos},
    run_folder::{RunFolder, read_log},
    settings::Settings,
    tensorboard::EventsFile,
    trainer::Trainer,
    weight_files::{Exported, Start, export},
};

/// Classes that samples show, images of each, and solver steps.
const SAMPLE_CLASSES: usize = 10;
const SAMPLE_IMAGES: usize = 8;
const SAMPLE_STEPS: usize = 25;

/// Trains as the settings state, or resumes the run in their folder, and writes the averaged weights to `out`.
///
/// Ends with the same bytes however often it is stopped or killed on the way.
///
/// # Errors
/// [`TrainError`] when settings, photos or weights do not fit, or a file fails; [`TrainError::Stopped`] after
/// `on_event` breaks, with everything saved. Reports never fail a run.
pub fn run(
    settings: &Settings,
    frozen: &Frozen<'_>,
    out: &Path,
    on_event: &mut OnEvent<'_>,
) -> Result<Exported, TrainError> {
    settings.validate()?;
    let mut folder = RunFolder::open(&settings.run)?;
    let start = settings.start.as_ref().map(Start::open).transpose()?;
    let data = Data::prepare(settings, frozen, start.as_ref(), on_event)?;

    let flow = settings.flow_config(frozen.features.as_ref().map_or(1, |it| it.shape.dim));
    let build = |vb: VarBuilder| FlowMatching::new(&data.network, flow, vb);
    let mut trainer = Trainer::new(settings.train.clone(), data.train.sha256(), &Device::Cpu, build)?;
    let resumed = folder.resume(&mut trainer)?;
    let mut stop = resumed.rejected.iter().any(|it| on_event(Event::Rejected(it)).is_break());
    match (resumed.step, &start) {
        (Some(step), _) => stop |= on_event(Event::Resumed(step, trainer.images_seen())).is_break(),
        (None, Some(start)) => {
            trainer.start_from(&start.weights(&data.network, trainer.parameters())?)?;
            stop |= on_event(Event::Started(start.path())).is_break();
        }
        (None, None) => {}
    }
    if stop {
        return Err(TrainError::Stopped);
    }

    train(settings, frozen, &data, &mut trainer, &mut folder, on_event)?;
    let test = data.test.as_ref();
    export(out, &trainer, test, &data.classes, &data.info, |decay, loss| {
        // The run is over: there is nothing left to stop.
        let _ = on_event(Event::AverageLoss(decay, loss));
    })
}

/// Everything that training reads.
struct Data {
    photos: Photos,
    classes: Vec<String>,
    network: NetworkConfig,
    info: LatentInfo,
    train: LatentDataset,
    test: Option<LatentDataset>,
}

impl Data {
    fn prepare(
        settings: &Settings,
        frozen: &Frozen<'_>,
        start: Option<&Start>,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Self, TrainError> {
        let Frozen { encoder, features } = frozen;
        let (images, place) = (&settings.images, settings.cache());
        if features.is_some() != settings.alignment.is_some() {
            let expected = "a feature extractor exactly where there is alignment";
            return Err(TrainError::setting("alignment", expected, features.is_some()));
        }
        let mut open = |path: &Path| {
            let photos = Photos::open(path, images)?;
            match on_event(Event::Photos(path, &photos.folder().report())) {
                ControlFlow::Continue(()) => Ok(photos),
                ControlFlow::Break(()) => Err(TrainError::Stopped),
            }
        };
        let photos = open(&images.train)?;
        let test = images.test.as_deref().map(&mut open).transpose()?;
        let classes = photos.folder().class_names();
        if let Some(test) = test.as_ref().map(|it| it.folder().class_names()).filter(|it| *it != classes) {
            let expected = format!("the {} classes of images.train", classes.len());
            return Err(TrainError::setting("images.test", expected, test.join(", ")));
        }
        let shape = encoder.latent_shape(images.size)?;
        let network = match (&settings.network, start) {
            (Some(network), _) => network.config(shape.0, classes.len())?,
            (None, Some(start)) => start.network(shape.0, classes.len())?,
            (None, None) => return Err(TrainError::setting("network", "a network", "none")),
        };
        let patch = network.sizes.patch_size;
        if !shape.1.is_multiple_of(patch) {
            let expected = format!("a multiple of {} for the network's patch", patch * encoder.downscale);
            return Err(TrainError::setting("images.size", expected, images.size));
        }

        let cached = features.as_ref().filter(|_| settings.alignment.as_ref().is_some_and(|it| it.cache));
        let train = encode_photos(&photos, images, &place.join("train"), encoder, cached, on_event)?;
        let info = match start.and_then(|it| it.latents(&encoder.name)) {
            Some(it) => LatentInfo { height: shape.1, width: shape.2, ..it.clone() },
            None => latent_info(encoder, &train, shape),
        };
        let normalised = |cache: LatentCache| {
            Ok::<_, TrainError>(LatentDataset::cached(cache.normalised_with(&info.mean, &info.std)?))
        };
        let test = match &test {
            None => None,
            Some(it) => {
                let cache = encode_photos(it, images, &place.join("test"), encoder, None, on_event)?;
                Some(normalised(cache)?)
            }
        };
        Ok(Self { train: normalised(train)?, photos, classes, network, info, test })
    }
}

/// Description of the latents, for the file of weights.
fn latent_info(
    encoder: &LatentEncoder<'_>,
    cache: &LatentCache,
    (channels, height, width): (usize, usize, usize),
) -> LatentInfo {
    let (mean, std) = if encoder.normalise {
        let (mean, std) = cache.channel_statistics();
        (mean.to_vec(), std.to_vec())
    } else {
        (vec![0.0; channels], vec![1.0; channels])
    };
    LatentInfo { autoencoder: encoder.name.clone(), height, width, mean, std }
}

/// The loop, to the end or until `on_event` breaks; saves in either case.
fn train(
    settings: &Settings,
    frozen: &Frozen<'_>,
    data: &Data,
    trainer: &mut Trainer<FlowMatching>,
    folder: &mut RunFolder,
    on_event: &mut OnEvent<'_>,
) -> Result<(), TrainError> {
    let watch = &settings.watch;
    let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
    let order = EpochOrder::new(settings.train.seed, data.train.len(), settings.images.flips)?;
    let live = frozen.features.as_ref().filter(|_| settings.alignment.as_ref().is_some_and(|it| !it.cache));
    let start = |it| LiveFeatures::start(&data.photos, &order, it, trainer.images_seen());
    let mut live = live.map(start).transpose()?;
    let mut log = Log::open(&settings.run, watch.tensorboard, on_event);
    let (mut saved, mut stop) = (Instant::now(), false);
    while !trainer.finished() && !stop {
        let report = trainer.step(|positions| {
            let mut batch = data.train.batch(&order.picks(positions.clone()), &Device::Cpu)?;
            if let Some(live) = &mut live {
                batch.features = Some(live.next(positions, &order)?);
            }
            Ok::<Batch, TrainError>(batch)
        })?;
        stop |= on_event(Event::Step(&report)).is_break();
        if due(report.step, watch.log_every) {
            log.add(folder, &report.record(), on_event)?;
        }
        if let Some(test) = data.test.as_ref().filter(|_| due(report.step, watch.test_every)) {
            let (average, times) = (trainer.averaged_network(0)?, TimeSampling::LogitNormal);
            let loss = evaluate_loss(average.as_ref(), test, watch.test_images, times, &Device::Cpu)?;
            let (step, images_seen) = (report.step, report.images_seen);
            let record = json!({ "step": step, "images_seen": images_seen, "test_loss": loss });
            log.add(folder, &record, on_event)?;
            stop |= on_event(Event::TestLoss(step, loss)).is_break();
        }
        if due(report.step, watch.samples_every) {
            let event = generate(trainer, watch.guidance, data);
            stop |= match &event {
                Ok(samples) => on_event(Event::Samples(samples)),
                Err(error) => on_event(Event::ReportFailed(error)),
            }
            .is_break();
        }
        if saved.elapsed().as_secs() >= watch.save_every_seconds {
            let path = folder.save(trainer)?;
            stop |= on_event(Event::Saved(&path)).is_break();
            saved = Instant::now();
        }
    }
    let path = folder.save(trainer)?;
    stop |= on_event(Event::Saved(&path)).is_break();
    if stop { Err(TrainError::Stopped) } else { Ok(()) }
}

/// Samples of the first classes with the averaged weights, always from the same noise.
fn generate(trainer: &Trainer<FlowMatching>, guidance: f64, data: &Data) -> Result<Samples, TrainError> {
    let network = trainer.averaged_network(0)?;
    let shown = data.classes.len().min(SAMPLE_CLASSES);
    let shape = (network.config().sizes.in_channels, data.info.height, data.info.width);
    let options = SampleOptions {
        grid: TimeGrid::new(SAMPLE_STEPS, None, 1.0)?,
        solver: &EULER,
        guidance: Guidance::new(guidance, (0.0, 1.0))?,
        plan: None,
    };
    let class = |label: usize| -> Result<Tensor, TrainError> {
        let first = (label * SAMPLE_IMAGES) as u64;
        let images: Vec<u64> = (first..first + SAMPLE_IMAGES as u64).collect();
        let noise = noise_batch(trainer.config().seed, &images, shape, &Device::Cpu)?;
        let labels = [label as u32; SAMPLE_IMAGES];
        let sampled =
            sample(network.as_ref(), &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
        Ok(sampled.latents)
    };
    let latents = (0..shown).map(class).collect::<Result<Vec<_>, _>>()?;
    Ok(Samples {
        step: trainer.steps(),
        images_seen: trainer.images_seen(),
        latents: Tensor::cat(&latents, 0)?,
        images_per_class: SAMPLE_IMAGES,
        classes: data.classes[..shown].to_vec(),
        info: data.info.clone(),
    })
}

/// A run's log, and TensorBoard's records beside it, which may fail without consequences.
struct Log {
    events: Option<EventsFile>,
}

impl Log {
    fn open(folder: &Path, tensorboard: bool, on_event: &mut OnEvent<'_>) -> Self {
        if !tensorboard {
            return Self { events: None };
        }
        // Rewritten from the log, which was cut back to the step that the run resumes from.
        let events = EventsFile::create(folder).and_then(|mut events| {
            read_log(folder)?.iter().try_for_each(|it| events.add(it))?;
            Ok(events)
        });
        Self { events: or_report(events, on_event) }
    }

    fn add(
        &mut self,
        folder: &mut RunFolder,
        record: &serde_json::Value,
        on_event: &mut OnEvent<'_>,
    ) -> Result<(), TrainError> {
        folder.log(record)?;
        if let Some(events) = &mut self.events
            && or_report(events.add(record), on_event).is_none()
        {
            self.events = None;
        }
        Ok(())
    }
}

fn or_report<T>(outcome: Result<T, TrainError>, on_event: &mut OnEvent<'_>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            // Whether to stop is asked again at the next step.
            let _ = on_event(Event::ReportFailed(error));
        })
        .ok()
}
