//! Photos: a folder of class folders as pixels, and as latents in a cache.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use ddt_data::{ClassList, ImageFolder, Loader, LoaderOptions, OnCorrupt, Rgb8, Sample};
use ddt_dist::Group;
use ddt_files::FileSystem;

use crate::{
    batch::{EpochOrder, Features},
    cache_writer::{EncodedImages, LatentCacheWriter},
    error::TrainError,
    event::{Event, OnEvent},
    latent_cache::{CacheContent, FeatureShape, LatentCache, MIRRORED},
    ranks::{agree_on, agreed},
    settings::ImageSettings,
    wishes::go_on,
};

/// Photos encoded at once.
const BATCH: usize = 64;

/// Photos whose features are computed at once in training.
const FEATURE_BATCH: usize = 32;

/// Approximate size of one file of a cache, in bytes.
const SHARD_BYTES: usize = 32 << 20;

/// Encoder of an autoencoder: pixels to latents.
pub struct LatentEncoder<'a> {
    /// Name of the autoencoder, as files of weights state it.
    pub name: String,
    /// Name and hash of its weights: a cache made with another one is refused.
    pub identity: String,
    /// Channels of a latent.
    pub channels: usize,
    /// Pixels per latent pixel along a side.
    pub downscale: usize,
    /// Whether it gives a distribution, means and standard deviations.
    pub posterior: bool,
    /// Whether each latent channel is normalised over the training images.
    pub normalise: bool,
    /// Means and, with a distribution, standard deviations.
    ///
    /// # Shapes
    /// `(B, 3, f H, f W)` in [-1, 1] to `(B, C, H, W)` each.
    pub encode: Encode<'a>,
}

/// Pixels to means and standard deviations of latents.
pub type Encode<'a> = Box<dyn Fn(&Tensor) -> candle_core::Result<(Tensor, Option<Tensor>)> + 'a>;

/// Frozen network whose tokens a run is aligned with.
pub struct FeatureExtractor<'a> {
    /// Name and hash of its weights: a cache made with another one is refused.
    pub identity: String,
    /// Sizes of the features of an image of the run.
    pub shape: FeatureShape,
    /// Tokens of images.
    ///
    /// # Shapes
    /// `(B, 3, H, W)` in [-1, 1] to `(B, rows * columns, F)`.
    pub extract: Extract<'a>,
}

/// Pixels to tokens.
pub type Extract<'a> = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + 'a>;

/// The frozen networks of a run, loaded as its settings name them.
pub struct Frozen<'a> {
    /// The autoencoder's encoder.
    pub encoder: LatentEncoder<'a>,
    /// The network to align with; present exactly where the settings have alignment.
    pub features: Option<FeatureExtractor<'a>>,
}

impl LatentEncoder<'_> {
    /// No autoencoder: latents are pixels.
    pub fn pixels() -> Self {
        Self {
            name: "pixels".to_owned(),
            identity: "pixels".to_owned(),
            channels: 3,
            downscale: 1,
            posterior: false,
            normalise: false,
            encode: Box::new(|pixels| Ok((pixels.clone(), None))),
        }
    }

    /// Channels, height and width of the latents of a square image.
    ///
    /// # Errors
    /// [`TrainError::Setting`] unless the side is a multiple of [`downscale`](Self::downscale).
    pub fn latent_shape(&self, size: u32) -> Result<(usize, usize, usize), TrainError> {
        let (side, factor) = (size as usize, self.downscale);
        if side == 0 || factor == 0 || !side.is_multiple_of(factor) {
            let expected = format!("a multiple of {factor} for the autoencoder {}", self.name);
            return Err(TrainError::setting("images.size", expected, size));
        }
        Ok((self.channels, side / factor, side / factor))
    }
}

/// A folder of photos that a run learns from, or is measured on.
#[derive(Debug, Clone)]
pub struct Photos {
    folder: Arc<ImageFolder>,
    settings: ImageSettings,
}

impl Photos {
    /// Lists a folder of class folders.
    ///
    /// # Errors
    /// [`TrainError::Photos`] for a folder that is not laid out as a dataset, or a class that is not in the
    /// list.
    pub fn open(folder: &Path, settings: &ImageSettings) -> Result<Self, TrainError> {
        let folder = match &settings.class_list {
            None => ImageFolder::open(folder)?,
            Some(list) => ImageFolder::open_with(folder, &ClassList::read(list)?)?,
        };
        Ok(Self { folder: Arc::new(folder), settings: settings.clone() })
    }

    /// The listed folder.
    pub fn folder(&self) -> &ImageFolder {
        &self.folder
    }

    /// Photos decoded ahead, in the order of `order`.
    ///
    /// # Errors
    /// [`TrainError::Photos`] when no threads can be started.
    pub fn load<I: Iterator<Item = usize>>(&self, order: I) -> Result<Loader<I>, TrainError> {
        let ImageSettings { size, threads, skip_corrupt, .. } = self.settings;
        let on_corrupt = if skip_corrupt { OnCorrupt::Skip } else { OnCorrupt::Fail };
        let options = LoaderOptions { on_corrupt, ..LoaderOptions::new(size, threads) };
        Ok(Loader::new(self.folder.clone(), order, options)?)
    }
}

/// Pixels of images of one size: `byte / 127.5 - 1`.
///
/// # Shapes
/// `(B, 3, H, W)` in [-1, 1].
///
/// # Errors
/// [`TrainError::Data`] when there are none, or their sizes differ.
pub fn pixels(images: &[Rgb8]) -> Result<Tensor, TrainError> {
    let Some(first) = images.first() else { return Err(TrainError::data("one or more images", "none")) };
    let (width, height) = (first.width(), first.height());
    if let Some(other) = images.iter().find(|it| (it.width(), it.height()) != (width, height)) {
        let got = format!("{} x {}", other.width(), other.height());
        return Err(TrainError::data(format!("images of {width} x {height}"), got));
    }
    let bytes = images.iter().flat_map(|it| it.as_bytes());
    let values: Vec<f32> = bytes.map(|byte| f32::from(*byte) / 127.5 - 1.0).collect();
    let shape = (images.len(), height as usize, width as usize, 3);
    let pixels = Tensor::from_vec(values, shape, &Device::Cpu)?; // (B, H, W, 3)
    Ok(pixels.permute((0, 3, 1, 2))?.contiguous()?)
}

/// Opens the cache of a folder's latents, after encoding the photos it lacks; `features` are cached too.
///
/// Several ranks encode a batch each in turn, and rank 0 writes; the cache has the same bytes as by one,
/// [`Alone`](ddt_dist::Alone).
///
/// # Errors
/// Photos that cannot be read, a cache of other photos or another autoencoder, a full disk;
/// [`TrainError::Stopped`] after `on_event` breaks, and then the same call resumes. Of several ranks all fail when one
/// does.
pub fn encode_photos(
    group: &dyn Group,
    system: &FileSystem,
    photos: &Photos,
    cache: &Path,
    encoder: &LatentEncoder<'_>,
    features: Option<&FeatureExtractor<'_>>,
    on_event: &mut OnEvent<'_>,
) -> Result<LatentCache, TrainError> {
    agreed(group, encode(group, system, photos, cache, encoder, features, on_event))?;
    let cache = LatentCache::open(cache);
    let verified = cache.and_then(|it| it.verify_some(group.rank(), group.size(), |_, _| {}).map(|()| it));
    agreed(group, verified)
}

fn encode(
    group: &dyn Group,
    system: &FileSystem,
    photos: &Photos,
    cache: &Path,
    encoder: &LatentEncoder<'_>,
    features: Option<&FeatureExtractor<'_>>,
    on_event: &mut OnEvent<'_>,
) -> Result<(), TrainError> {
    let settings = &photos.settings;
    let mut made_from = BTreeMap::from([
        ("images".to_owned(), photos.folder.identity()?),
        ("size".to_owned(), settings.size.to_string()),
        ("autoencoder".to_owned(), encoder.identity.clone()),
        ("skip_corrupt".to_owned(), settings.skip_corrupt.to_string()),
    ]);
    if let Some(it) = features {
        made_from.insert("features".to_owned(), it.identity.clone());
    }
    let content = CacheContent {
        made_from,
        classes: photos.folder.class_names(),
        shape: encoder.latent_shape(settings.size)?,
        posterior: encoder.posterior,
        flips: settings.flips,
        features: features.map(|it| it.shape),
    };
    let per_image = 4 * content.values_per_image();
    // Rank 0 writes what all encode.
    let shard_images = SHARD_BYTES / per_image.max(1);
    let open = || LatentCacheWriter::open_on(system, cache, content.clone(), DType::F16, shard_images);
    let writer = (group.rank() == 0).then(open).transpose();
    let say = |it: &Option<LatentCacheWriter>| {
        it.as_ref().map_or(Vec::new(), |it| {
            [&[it.is_finished().into()], &it.source_end().to_le_bytes()[..]].concat()
        })
    };
    let (mut writer, heard) = agree_on(group, writer, say)?;
    let place = heard.first().and_then(|it| it.split_first());
    let begin = place.and_then(|it| it.1.try_into().ok()).map_or(0, u64::from_le_bytes) as usize;
    if place.is_none_or(|it| *it.0 == 0) {
        let end = photos.folder.len();
        let round = BATCH * group.size();
        let own = |round: usize| round + BATCH * group.rank()..end.min(round + BATCH * (group.rank() + 1));
        let mut loader = photos.load((begin..end).step_by(round).flat_map(own))?;
        let mut next = None;
        for first in (begin..end).step_by(round) {
            let stop = on_event(Event::Encoding(first as u64, end as u64)).is_break();
            go_on(group, stop, on_event)?;
            let own = own(first);
            let mut samples = Vec::new();
            let encoded = loop {
                match next.take().or_else(|| loader.next()) {
                    Some(Ok(sample)) if sample.index < own.end => samples.push(sample),
                    Some(Err(error)) => break Err(error.into()),
                    // Of a later round; the photos before it may all have been skipped.
                    later => {
                        next = later;
                        break encode_batch(samples, settings.flips, encoder, features);
                    }
                }
            };
            // Nothing that may fail on one rank alone stands between the counts and the images.
            let encoded = encoded.and_then(|it| {
                content.check(&it)?;
                let sent = if group.rank() > 0 { it.to_bytes(&content)? } else { Vec::new() };
                Ok((it, sent))
            });
            let say = |it: &(EncodedImages, Vec<u8>)| it.0.labels.len().to_le_bytes().to_vec();
            let ((encoded, sent), heard) = agree_on::<_, TrainError>(group, encoded, say)?;
            let Some(writer) = &mut writer else {
                group.exchange(0, &sent, &mut [])?;
                continue;
            };
            let mut received = Vec::new();
            for (rank, said) in heard.into_iter().enumerate().skip(1) {
                let count = said.try_into().map_or(0, usize::from_le_bytes);
                let mut bytes = vec![0; 4 * count * (1 + content.values_per_image())];
                group.exchange(rank, &[], &mut bytes)?;
                received.push((count, bytes));
            }
            writer.push(encoded, own.end as u64)?;
            for (rank, (count, bytes)) in (1..).zip(received) {
                let source_end = end.min(first + BATCH * (rank + 1));
                writer.push(EncodedImages::of_bytes(count, &bytes, &content)?, source_end as u64)?;
            }
        }
        let stop = loader.skipped().count > 0 && on_event(Event::Skipped(loader.skipped())).is_break();
        go_on(group, stop, on_event)?;
    }
    writer.map_or(Ok(()), LatentCacheWriter::finish)
}

impl EncodedImages {
    /// Labels, and the fields of a content in f32.
    fn to_bytes(&self, content: &CacheContent) -> Result<Vec<u8>, TrainError> {
        let mut bytes: Vec<u8> = self.labels.iter().flat_map(|it| it.to_le_bytes()).collect();
        let fields = content.fields();
        for tensor in fields.iter().filter_map(|it| self.fields.get(&it.0)) {
            let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            bytes.extend(values.iter().flat_map(|it| it.to_le_bytes()));
        }
        Ok(bytes)
    }

    /// As many images of another rank.
    fn of_bytes(count: usize, bytes: &[u8], content: &CacheContent) -> Result<Self, TrainError> {
        let mut words = bytes.chunks_exact(4).map(|it| [it[0], it[1], it[2], it[3]]);
        let labels = words.by_ref().take(count).map(u32::from_le_bytes).collect();
        let mut fields = BTreeMap::new();
        for (name, row) in content.fields().into_iter().filter(|_| count > 0) {
            let shape: Vec<usize> = [count].into_iter().chain(row).collect();
            let values = words.by_ref().take(shape.iter().product()).map(f32::from_le_bytes);
            fields.insert(name, Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu)?);
        }
        Ok(Self { labels, fields })
    }
}

fn encode_batch(
    samples: Vec<Sample>,
    flips: bool,
    encoder: &LatentEncoder<'_>,
    features: Option<&FeatureExtractor<'_>>,
) -> Result<EncodedImages, TrainError> {
    let mut encoded =
        EncodedImages { labels: samples.iter().filter_map(|it| it.label).collect(), fields: BTreeMap::new() };
    if samples.is_empty() {
        return Ok(encoded);
    }
    let mut images: Vec<Rgb8> = samples.into_iter().map(|it| it.pixels).collect();
    let mut add = |prefix: &str, images: &[Rgb8]| -> Result<(), TrainError> {
        let pixels = pixels(images)?;
        let (latents, std) = (encoder.encode)(&pixels)?;
        encoded.fields.insert(format!("{prefix}latents"), latents);
        if let Some(std) = std {
            encoded.fields.insert(format!("{prefix}std"), std);
        }
        if let Some(it) = features {
            encoded.fields.insert(format!("{prefix}features"), (it.extract)(&pixels)?);
        }
        Ok(())
    };
    add("", &images)?;
    if flips {
        images.iter_mut().for_each(Rgb8::flip_horizontal);
        add(MIRRORED, &images)?;
    }
    Ok(encoded)
}

/// Features computed from the photos, which are decoded ahead in the order of the run.
pub(crate) struct LiveFeatures<'a> {
    extractor: &'a FeatureExtractor<'a>,
    loader: Loader<Box<dyn Iterator<Item = usize> + 'a>>,
    /// Positions in the run of the loader's images.
    positions: Box<dyn Iterator<Item = u64> + 'a>,
}

impl<'a> LiveFeatures<'a> {
    pub(crate) fn start(
        photos: &Photos,
        order: &'a EpochOrder,
        extractor: &'a FeatureExtractor<'a>,
        positions: impl Iterator<Item = u64> + Clone + 'a,
    ) -> Result<Self, TrainError> {
        let images: Box<dyn Iterator<Item = usize> + 'a> =
            Box::new(positions.clone().map(|it| order.at(it).image));
        Ok(Self { extractor, loader: photos.load(images)?, positions: Box::new(positions) })
    }

    /// Features of the next images, which must be those at `positions`.
    pub(crate) fn next(&mut self, positions: Range<u64>, order: &EpochOrder) -> Result<Features, TrainError> {
        let mut tokens = Vec::new();
        let positions: Vec<u64> = positions.collect();
        for positions in positions.chunks(FEATURE_BATCH) {
            let mut images = Vec::with_capacity(positions.len());
            for (&position, expected) in positions.iter().zip(self.positions.by_ref()) {
                if position != expected {
                    let expected = format!("the image at position {expected}, in the order of the run");
                    return Err(TrainError::data(expected, position.to_string()));
                }
                let Some(sample) = self.loader.next() else { break };
                let mut image = sample?.pixels;
                if order.at(position).flipped {
                    image.flip_horizontal();
                }
                images.push(image);
            }
            tokens.push((self.extractor.extract)(&pixels(&images)?)?);
        }
        Ok(Features { tokens: Tensor::cat(&tokens, 0)?, grid: self.extractor.shape.grid })
    }
}
