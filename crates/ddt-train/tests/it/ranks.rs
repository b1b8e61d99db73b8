//! Several ranks end with the same bytes as one, and fail together. Threads stand for processes here.

use std::{
    collections::BTreeMap,
    fs,
    io::{Error as IoError, ErrorKind},
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::Duration,
};

use candle_core::{Device, Tensor};
use ddt_dist::{Group, RankFailed, ThreadRank, thread_group};
use ddt_files::{Change, FileSystem};
use ddt_model::{DdtConfig, NetworkConfig};
use ddt_train::{
    Batch, EpochOrder, Event, FlowConfig, FlowMatching, ImageSettings, LatentCache, LatentDataset,
    LatentEncoder, Photos, Precision, RunFolder, TrainConfig, TrainError, Trainer, encode_photos,
};

use crate::runs::{config, data, names, outcome, sizes};

const STEPS: u64 = 20;

fn eight_micro_batches() -> TrainConfig {
    TrainConfig { batch_size: 8, micro_batch: Some(1), total_images: 8 * STEPS, ..config(STEPS) }
}

fn trainer_in(group: Arc<dyn Group>, cfg: &TrainConfig) -> Result<Trainer<FlowMatching>, TrainError> {
    let network = NetworkConfig::from(sizes());
    let build = |vb: candle_nn::VarBuilder| FlowMatching::new(&network, FlowConfig::PAPER, vb);
    Trainer::in_group(group, cfg.clone(), data().sha256(), &Device::Cpu, build)
}

/// A rank's batch, by rank, step and position of its first image; its error is the rank's failure.
type ChangeBatch = dyn Fn(usize, u64, Batch) -> Result<Batch, TrainError> + Sync;

/// Trains as one of several ranks until a step, saving every third; returns the bytes it sent in its last step.
fn train_rank(
    group: ThreadRank,
    cfg: &TrainConfig,
    system: &FileSystem,
    folder: &Path,
    until: u64,
    change: &ChangeBatch,
) -> Result<u64, TrainError> {
    let group: Arc<dyn Group> = Arc::new(group);
    let mut trainer = trainer_in(group.clone(), cfg)?;
    let mut run = RunFolder::open_in(group.clone(), system, folder)?;
    run.resume(&mut trainer)?;
    let (data, order) = (data(), EpochOrder::new(cfg.seed, data().len(), false)?);
    let mut sent = 0;
    while !trainer.finished() && trainer.steps() < until {
        let (before, step) = (group.bytes_sent(), trainer.steps() + 1);
        let report = trainer.step(|positions| {
            change(group.rank(), step, data.batch(&order.picks(positions), &Device::Cpu)?)
        })?;
        sent = group.bytes_sent() - before;
        run.log(&report.record())?;
        if report.step.is_multiple_of(3) || trainer.finished() {
            run.save(&trainer)?;
        }
    }
    Ok(sent)
}

/// The same with all ranks; each with its own file layer.
fn train(
    size: usize,
    cfg: &TrainConfig,
    folder: &Path,
    until: u64,
    system: impl Fn(usize) -> FileSystem,
    change: &ChangeBatch,
) -> Vec<Result<u64, TrainError>> {
    std::thread::scope(|scope| {
        let start = |group: ThreadRank| {
            let system = system(group.rank());
            let group = group.with_limit(Duration::from_secs(20));
            scope.spawn(move || train_rank(group, cfg, &system, folder, until, change))
        };
        let ranks: Vec<_> = thread_group(size).into_iter().map(start).collect();
        ranks.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

/// Encodes photos with all ranks, each with its own file layer; the outcome of each, and the files that it skipped.
fn encode(
    size: usize,
    settings: &ImageSettings,
    cache: &Path,
    system: impl Fn(usize) -> FileSystem,
) -> Vec<(Result<LatentCache, TrainError>, Vec<String>)> {
    std::thread::scope(|scope| {
        let start = |group: ThreadRank| {
            let (system, group) = (system(group.rank()), group.with_limit(Duration::from_secs(20)));
            scope.spawn(move || {
                let photos = Photos::open(&settings.train, settings).unwrap();
                // Latents so large that a batch fills a file.
                let encode = |pixels: &candle_core::Tensor| {
                    let latents = pixels.mean(1)?.unsqueeze(1)?.repeat((1, 512, 1, 1))?;
                    Ok((latents, None))
                };
                let encoder =
                    LatentEncoder { channels: 512, encode: Box::new(encode), ..LatentEncoder::pixels() };
                let mut skipped = Vec::new();
                let mut on_event = |event: Event<'_>| {
                    if let Event::Skipped(it) = event {
                        let name = |it: &Path| it.file_name().unwrap().to_string_lossy().into_owned();
                        skipped.extend(it.files.iter().map(|it| name(&it.path)));
                    }
                    ControlFlow::Continue(())
                };
                let done = encode_photos(&group, &system, &photos, cache, &encoder, None, &mut on_event);
                (done, skipped)
            })
        };
        let ranks: Vec<_> = thread_group(size).into_iter().map(start).collect();
        ranks.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn train_well(size: usize, cfg: &TrainConfig, folder: &Path, until: u64) -> Vec<u64> {
    let outcomes = train(size, cfg, folder, until, |_| FileSystem::default(), &|_, _, batch| Ok(batch));
    outcomes.into_iter().map(Result::unwrap).collect()
}

fn whole(cfg: &TrainConfig) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    train_well(1, cfg, folder.path(), u64::MAX);
    outcome(folder.path())
}

#[test]
fn any_number_of_ranks_ends_with_the_same_bytes() {
    for precision in [Precision::F32, Precision::Bf16] {
        // The last micro-batch is smaller.
        let odd = TrainConfig { batch_size: 11, micro_batch: Some(2), precision, ..eight_micro_batches() };
        let cfg = TrainConfig { precision, ..eight_micro_batches() };
        for (cfg, sizes) in [(odd, vec![2]), (cfg, vec![2, 4, 8])] {
            let expected = whole(&cfg);
            for size in sizes {
                let folder = tempfile::tempdir().unwrap();
                train_well(size, &cfg, folder.path(), u64::MAX);
                assert_eq!(outcome(folder.path()), expected, "{size} ranks, {precision:?}");
            }
        }
    }
}

#[test]
fn any_number_of_ranks_resumes() {
    let cfg = eight_micro_batches();
    let folder = tempfile::tempdir().unwrap();
    for (size, until) in [(4, 7), (1, 10), (2, 14), (8, u64::MAX)] {
        train_well(size, &cfg, folder.path(), until);
    }
    assert_eq!(outcome(folder.path()), whole(&cfg));
}

/// Bytes of a step by all ranks: gradients and weights; a square of each parameter's gradient; that all are well, through
/// rank 0.
fn formula(weights: &BTreeMap<String, Tensor>, size: u64) -> u64 {
    let values: u64 = weights.values().map(|it| it.elem_count() as u64).sum();
    (size - 1) * (2 * 4 * values + 8 * weights.len() as u64 + 512 * (size + 1))
}

#[test]
fn a_step_sends_what_the_formula_says() {
    let cfg = eight_micro_batches();
    let trainer = trainer_in(Arc::new(ddt_dist::Alone), &cfg).unwrap();
    for size in [1, 2, 4] {
        let folder = tempfile::tempdir().unwrap();
        let sent: u64 = train_well(size, &cfg, folder.path(), u64::MAX).iter().sum();
        assert_eq!(sent, formula(&trainer.weights().unwrap(), size as u64), "{size} ranks");
    }
}

#[test]
fn a_step_of_the_demos_network_sends_what_the_formula_says() {
    let (cfg, size) = (TrainConfig { batch_size: 4, micro_batch: Some(1), ..config(1) }, 4);
    let network =
        DdtConfig { hidden_size: 256, num_heads: 4, num_encoder_blocks: 6, num_decoder_blocks: 2, ..sizes() };
    let network = NetworkConfig::from(DdtConfig { in_channels: 32, num_classes: 10, ..network });
    let images = LatentDataset::new(vec![0.5; 7 * 32 * 16], vec![0; 7], (32, 4, 4)).unwrap();
    let order = EpochOrder::new(cfg.seed, images.len(), false).unwrap();
    let sent: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let step = |group: ThreadRank| {
            let (cfg, network, images, order) = (&cfg, &network, &images, &order);
            scope.spawn(move || {
                let group: Arc<dyn Group> = Arc::new(group);
                let build = |vb: candle_nn::VarBuilder| FlowMatching::new(network, FlowConfig::PAPER, vb);
                let sha256 = images.sha256();
                let trainer = Trainer::in_group(group.clone(), cfg.clone(), sha256, &Device::Cpu, build);
                let (mut trainer, before) = (trainer.unwrap(), group.bytes_sent());
                trainer.step(|positions| images.batch(&order.picks(positions), &Device::Cpu)).unwrap();
                (group.bytes_sent() - before, formula(&trainer.weights().unwrap(), size))
            })
        };
        let ranks: Vec<_> = thread_group(size as usize).into_iter().map(step).collect();
        ranks.into_iter().map(|it| it.join().unwrap()).collect()
    });
    // 9.7 million parameters, there and back.
    let (all, expected) = (sent.iter().map(|it| it.0).sum::<u64>(), sent[0].1);
    assert_eq!(all, expected);
    assert!((225_000_000..240_000_000).contains(&all), "{all} bytes");
}

#[test]
fn other_numbers_of_ranks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cfg = TrainConfig { micro_batch: Some(2), ..eight_micro_batches() };
    for outcome in train(3, &cfg, folder.path(), 1, |_| FileSystem::default(), &|_, _, batch| Ok(batch)) {
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("3 processes cannot share 4 micro-batches of a step"), "{message}");
        assert!(message.ends_with("such as 2 or 4"), "{message}");
    }
}

/// All ranks return the failure of one, after five steps of four ranks.
fn fail(
    folder: &Path,
    cfg: &TrainConfig,
    system: impl Fn(usize) -> FileSystem,
    change: &ChangeBatch,
) -> RankFailed {
    train_well(4, cfg, folder, 5);
    let outcomes = train(4, cfg, folder, u64::MAX, system, change);
    let failed: Vec<RankFailed> = outcomes
        .into_iter()
        .map(|it| match it {
            Err(TrainError::Rank(failed)) => failed,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(failed.iter().all(|it| *it == failed[0]), "{failed:?}");
    failed[0].clone()
}

/// And the run goes on with another number of ranks.
fn fails_together(rank: usize, cause: &str, system: impl Fn(usize) -> FileSystem, change: &ChangeBatch) {
    let cfg = eight_micro_batches();
    let folder = tempfile::tempdir().unwrap();
    let failed = fail(folder.path(), &cfg, system, change);
    assert!(failed.rank == rank && failed.cause.contains(cause), "{failed}");
    assert!(names(folder.path()).contains(&"step-0000000003".to_owned()), "{:?}", names(folder.path()));
    train_well(2, &cfg, folder.path(), u64::MAX);
    assert_eq!(outcome(folder.path()), whole(&cfg), "{cause}");
}

#[test]
fn a_rank_that_cannot_read_its_data_stops_all() {
    fails_together(2, "expected a photo, got dust", |_| FileSystem::default(), &|rank, step, batch| {
        if (rank, step) == (2, 7) {
            let (expected, got) = ("a photo".to_owned(), "dust".to_owned());
            return Err(TrainError::Data { expected, got });
        }
        Ok(batch)
    });
}

#[test]
fn a_rank_whose_loss_is_not_finite_is_named() {
    let cfg = TrainConfig { total_images: 8 * 2 * STEPS, ..eight_micro_batches() };
    let folder = tempfile::tempdir().unwrap();
    let failed = fail(folder.path(), &cfg, |_| FileSystem::default(), &|rank, step, mut batch| {
        if rank == 3 && step > 5 {
            batch.latents = (batch.latents * f64::INFINITY)?;
        }
        Ok(batch)
    });
    assert!(failed.rank == 3 && failed.cause.starts_with("20 steps in a row, up to step 25"), "{failed}");
}

#[test]
fn a_full_disk_on_one_rank_stops_all() {
    let full = |rank| match rank {
        1 => FileSystem::checked_by(|change| {
            let full = IoError::new(ErrorKind::StorageFull, "no space left");
            if matches!(change, Change::Write(..)) { Err(full) } else { Ok(()) }
        }),
        _ => FileSystem::default(),
    };
    fails_together(1, "first-moments", full, &|_, _, batch| Ok(batch));
}

#[test]
fn a_full_disk_on_rank_0_stops_all_while_photos_are_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("photos/cat");
    fs::create_dir_all(&class).unwrap();
    // Two rounds of two ranks. The second rank's first batch has a file that is no image.
    for i in 0..230u8 {
        let path = class.join(format!("{i:03}.png"));
        image::RgbImage::from_pixel(16, 16, image::Rgb([i, 0, 0])).save(&path).unwrap();
        if i == 100 {
            fs::write(path, b"no image").unwrap();
        }
    }
    let photos = folder.path().join("photos");
    let settings = ImageSettings { skip_corrupt: true, ..ImageSettings::plain(photos, 16) };
    let files = |cache: &Path| {
        let entry = |it: fs::DirEntry| (it.file_name(), ddt_files::sha256_file(&it.path()).unwrap());
        let mut files: Vec<_> = fs::read_dir(cache).unwrap().map(|it| entry(it.unwrap())).collect();
        files.sort();
        files
    };
    let (alone, cache) = (folder.path().join("alone"), folder.path().join("cache"));
    encode(1, &settings, &alone, |_| FileSystem::default()).pop().unwrap().0.unwrap();
    // Three shards, the index and the lock.
    assert_eq!(files(&alone).len(), 5);
    for fails in
        ["index.json", "shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors"]
    {
        let system = |rank| match rank {
            0 => FileSystem::checked_by(move |change| match change {
                Change::Rename(_, to) if to.ends_with(fails) => {
                    Err(IoError::new(ErrorKind::StorageFull, "no space left"))
                }
                _ => Ok(()),
            }),
            _ => FileSystem::default(),
        };
        for (outcome, _) in encode(2, &settings, &cache, system) {
            let Err(TrainError::Rank(failed)) = outcome else { panic!("{outcome:?}") };
            assert!(failed.rank == 0 && failed.cause.contains(fails), "{failed}");
            assert!(failed.cause.contains("no space left"), "{failed}");
        }
    }
    let outcomes = encode(2, &settings, &cache, |_| FileSystem::default());
    assert!(outcomes.iter().all(|it| it.0.is_ok()), "{outcomes:?}");
    assert_eq!(files(&cache), files(&alone));
    // Each rank reports those of its own photos.
    fs::remove_dir_all(&cache).unwrap();
    let skipped = encode(2, &settings, &cache, |_| FileSystem::default()).into_iter().map(|it| it.1);
    assert_eq!(skipped.collect::<Vec<_>>(), [vec![], vec!["100.png".to_owned()]]);
}
