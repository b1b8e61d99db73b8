//! A run from its settings to its weights.

use std::{ops::ControlFlow, path::Path, sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use ddt_dist::Group;
use ddt_files::FileSystem;
use ddt_flow::{EULER, Guidance, TimeGrid, TimeSampling, noise_batch};
use ddt_model::{LatentInfo, NetworkConfig, SampleOptions, VelocityNetwork, sample};
use serde_json::json;

use crate::{
    batch::{Batch, EpochOrder},
    data::LatentDataset,
    error::TrainError,
    event::{Event, OnEvent, Samples},
    flow_matching::{FlowMatching, evaluate_loss_in},
    latent_cache::LatentCache,
    photos::{Frozen, LatentEncoder, LiveFeatures, Photos, encode_photos},
    ranks::agreed,
    run_folder::{RunFolder, read_log},
    settings::Settings,
    tensorboard::EventsFile,
    trainer::Trainer,
    weight_files::{Exported, Start, export},
    wishes::{Wishes, go_on},
};

/// Classes that samples show, images of each, and solver steps.
const SAMPLE_CLASSES: usize = 10;
const SAMPLE_IMAGES: usize = 8;
const SAMPLE_STEPS: usize = 25;

/// Trains as the settings state, or resumes the run in their folder, and writes the averaged weights to `out`.
///
/// Ends with the same bytes however often it is stopped or killed on the way, and with any number of ranks: they make
/// the same call on folders that all of them see. One process is [`Alone`](ddt_dist::Alone).
///
/// # Errors
/// [`TrainError`] when settings, photos or weights do not fit, or a file fails; [`TrainError::Stopped`] after
/// `on_event` breaks, with everything saved. Reports never fail a run. Of several ranks all return
/// [`TrainError::Rank`] when one fails, and [`TrainError::Stopped`] when `on_event` breaks on one;
/// [`TrainError::Group`] for a number of ranks that cannot share a step's micro-batches.
pub fn run(
    group: Arc<dyn Group>,
    system: &FileSystem,
    settings: &Settings,
    frozen: &Frozen<'_>,
    out: &Path,
    on_event: &mut OnEvent<'_>,
) -> Result<Exported, TrainError> {
    agreed(group.as_ref(), run_rank(&group, system, settings, frozen, out, on_event))
}

fn run_rank(
    group: &Arc<dyn Group>,
    system: &FileSystem,
    settings: &Settings,
    frozen: &Frozen<'_>,
    out: &Path,
    on_event: &mut OnEvent<'_>,
) -> Result<Exported, TrainError> {
    settings.validate()?;
    let mut folder = RunFolder::open_in(group.clone(), system, &settings.run)?;
    let start = settings.start.as_ref().map(Start::open).transpose()?;
    let data = Data::prepare(group.as_ref(), system, settings, frozen, start.as_ref(), on_event)?;

    let flow = settings.flow_config(frozen.features.as_ref().map_or(1, |it| it.shape.dim));
    let build = |vb: VarBuilder| FlowMatching::new(&data.network, flow, vb);
    let (cfg, identity) = (settings.train.clone(), data.train.sha256());
    let mut trainer = Trainer::in_group(group.clone(), cfg, identity, &Device::Cpu, build)?;
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
    go_on(group.as_ref(), stop, on_event)?;

    train(settings, frozen, &data, &mut trainer, &mut folder, on_event)?;
    let test = data.test.as_ref();
    export(system, out, &trainer, test, &data.classes, &data.info, |decay, loss| {
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
        group: &dyn Group,
        system: &FileSystem,
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
            let stop = on_event(Event::Photos(path, &photos.folder().report())).is_break();
            go_on(group, stop, on_event)?;
            Ok::<_, TrainError>(photos)
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
        let mut encode = |photos: &Photos, name: &str, features| {
            encode_photos(group, system, photos, &place.join(name), encoder, features, on_event)
        };
        let train = encode(&photos, "train", cached)?;
        let info = match start.and_then(|it| it.latents(&encoder.name)) {
            Some(it) => LatentInfo { height: shape.1, width: shape.2, ..it.clone() },
            None => latent_info(encoder, &train, shape),
        };
        let normalised = |cache: LatentCache| {
            Ok::<_, TrainError>(LatentDataset::cached(cache.normalised_with(&info.mean, &info.std)?))
        };
        let test = test.map(|it| normalised(encode(&it, "test", None)?)).transpose()?;
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

/// The loop, to the end or until `on_event` breaks on a rank; saves in either case.
fn train(
    settings: &Settings,
    frozen: &Frozen<'_>,
    data: &Data,
    trainer: &mut Trainer<FlowMatching>,
    folder: &mut RunFolder,
    on_event: &mut OnEvent<'_>,
) -> Result<(), TrainError> {
    let watch = &settings.watch;
    let order = EpochOrder::new(settings.train.seed, data.train.len(), settings.images.flips)?;
    let live = frozen.features.as_ref().filter(|_| settings.alignment.as_ref().is_some_and(|it| !it.cache));
    let (first, batch_size) = (trainer.own_images(), settings.train.batch_size as u64);
    let own = (0..).flat_map(move |step| first.start + step * batch_size..first.end + step * batch_size);
    let mut live = live.map(|it| LiveFeatures::start(&data.photos, &order, it, own)).transpose()?;
    let group = trainer.group().clone();
    let group = group.as_ref();
    let mut log = Log::open(folder, watch.tensorboard && group.rank() == 0, on_event);
    let (mut saved, mut stop) = (Instant::now(), false);
    while !trainer.finished() && !stop {
        let report = trainer.step(|positions| {
            let mut batch = data.train.batch(&order.picks(positions.clone()), &Device::Cpu)?;
            if let Some(live) = &mut live {
                batch.features = Some(live.next(positions, &order)?);
            }
            Ok::<Batch, TrainError>(batch)
        })?;
        let mut own = Wishes::stop(on_event(Event::Step(&report)).is_break());
        own.save = saved.elapsed().as_secs() >= watch.save_every_seconds;
        if due(report.step, watch.log_every) {
            log.add(folder, &report.record(), on_event)?;
        }
        // Also meets a rank that failed alone, before the next thing that all do.
        let wishes = Wishes::together(group, own, false, on_event)?;
        // The reports of a step are made even before a stop, so that the log does not depend on it.
        stop = report_step(settings, data, trainer, folder, &mut log, wishes.stop, on_event)?;
        if wishes.save && !stop {
            stop = save(trainer, folder, stop, on_event)?;
            saved = Instant::now();
        }
    }
    if save(trainer, folder, stop, on_event)? { Err(TrainError::Stopped) } else { Ok(()) }
}

/// Whether something is due that happens every so many steps; 0 for never.
fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The loss on test images and samples, where they are due. Returns whether to stop.
fn report_step(
    settings: &Settings,
    data: &Data,
    trainer: &Trainer<FlowMatching>,
    folder: &mut RunFolder,
    log: &mut Log,
    stop: bool,
    on_event: &mut OnEvent<'_>,
) -> Result<bool, TrainError> {
    let (watch, group, step) = (&settings.watch, trainer.group().as_ref(), trainer.steps());
    let test = data.test.as_ref().filter(|_| due(step, watch.test_every));
    let shows = due(step, watch.samples_every);
    if test.is_none() && !shows {
        return Ok(stop);
    }
    let (weights, shows) = (trainer.averaged_weights(0)?, shows && group.rank() == 0);
    let network = (test.is_some() || shows).then(|| trainer.network_of(weights)).transpose()?;
    let mut own = Wishes::default();
    if let (Some(test), Some(network)) = (test, &network) {
        let (images, times) = (watch.test_images, TimeSampling::LogitNormal);
        let loss = evaluate_loss_in(group, network.as_ref(), test, images, times, &Device::Cpu)?;
        let record = json!({ "step": step, "images_seen": trainer.images_seen(), "test_loss": loss });
        log.add(folder, &record, on_event)?;
        own.stop |= on_event(Event::TestLoss(step, loss)).is_break();
    }
    if let Some(network) = network.filter(|_| shows) {
        own.stop |= match generate(trainer, network.as_ref(), watch.guidance, data) {
            Ok(samples) => on_event(Event::Samples(&samples)).is_break(),
            Err(error) => on_event(Event::ReportFailed(&error)).is_break(),
        };
    }
    Ok(Wishes::together(group, own, stop, on_event)?.stop)
}

/// Saves, and returns whether to stop.
fn save(
    trainer: &Trainer<FlowMatching>,
    folder: &mut RunFolder,
    stop: bool,
    on_event: &mut OnEvent<'_>,
) -> Result<bool, TrainError> {
    let path = folder.save(trainer)?;
    let own = Wishes::stop(on_event(Event::Saved(&path)).is_break());
    Ok(Wishes::together(trainer.group().as_ref(), own, stop, on_event)?.stop)
}

/// Samples of the first classes with the averaged weights, always from the same noise.
fn generate(
    trainer: &Trainer<FlowMatching>,
    network: &dyn VelocityNetwork,
    guidance: f64,
    data: &Data,
) -> Result<Samples, TrainError> {
    let shown = data.classes.len().min(SAMPLE_CLASSES);
    let shape = (network.config().sizes.in_channels, data.info.height, data.info.width);
    let options = SampleOptions {
        grid: TimeGrid::new(SAMPLE_STEPS, None, trainer.objective().config().timeshift)?,
        solver: &EULER,
        guidance: Guidance::new(guidance, (0.0, 1.0))?,
        plan: None,
    };
    let class = |label: usize| -> Result<Tensor, TrainError> {
        let first = (label * SAMPLE_IMAGES) as u64;
        let images: Vec<u64> = (first..first + SAMPLE_IMAGES as u64).collect();
        let noise = noise_batch(trainer.config().seed, &images, shape, &Device::Cpu)?;
        let labels = [label as u32; SAMPLE_IMAGES];
        let sampled = sample(network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(()))?;
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
    fn open(folder: &RunFolder, tensorboard: bool, on_event: &mut OnEvent<'_>) -> Self {
        if !tensorboard {
            return Self { events: None };
        }
        // Rewritten from the log, which was cut back to the step that the run resumes from.
        let events = EventsFile::create(folder.system(), folder.path()).and_then(|mut events| {
            read_log(folder.path())?.iter().try_for_each(|it| events.add(it))?;
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
