//! Photos: a folder of class folders as pixels, and as latents in a cache.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use ddt_data::{ClassList, ImageFolder, Loader, LoaderOptions, OnCorrupt, Rgb8, Sample};

use crate::{
    batch::{EpochOrder, Features},
    cache_writer::{EncodedImages, LatentCacheWriter},
    error::TrainError,
    event::{Event, OnEvent},
    latent_cache::{CacheContent, FeatureShape, LatentCache, MIRRORED},
    settings::ImageSettings,
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
    options: LoaderOptions,
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
        let on_corrupt = if settings.skip_corrupt { OnCorrupt::Skip } else { OnCorrupt::Fail };
        let options = LoaderOptions { on_corrupt, ..LoaderOptions::new(settings.size, settings.threads) };
        Ok(Self { folder: Arc::new(folder), options })
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
        Ok(Loader::new(self.folder.clone(), order, self.options)?)
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
/// # Errors
/// Photos that cannot be read, a cache of other photos or another autoencoder, a full disk;
/// [`TrainError::Stopped`] after `on_event` breaks, and then the same call resumes.
pub fn encode_photos(
    photos: &Photos,
    settings: &ImageSettings,
    cache: &Path,
    encoder: &LatentEncoder<'_>,
    features: Option<&FeatureExtractor<'_>>,
    on_event: &mut OnEvent<'_>,
) -> Result<LatentCache, TrainError> {
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
    let mut writer = LatentCacheWriter::open(cache, content, DType::F16, SHARD_BYTES / per_image.max(1))?;
    if !writer.is_finished() {
        let (begin, end) = (writer.source_end() as usize, photos.folder.len());
        let mut loader = photos.load(begin..end)?;
        let mut position = begin;
        while position < end {
            if on_event(Event::Encoding(position as u64, end as u64)).is_break() {
                return Err(TrainError::Stopped);
            }
            let samples = loader.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
            // The last photos may all have been skipped.
            position = samples.last().map_or(end, |it| it.index + 1);
            writer.push(encode(samples, settings.flips, encoder, features)?, position as u64)?;
        }
        if loader.skipped().count > 0 && on_event(Event::Skipped(loader.skipped())).is_break() {
            return Err(TrainError::Stopped);
        }
        writer.finish()?;
    }
    let cache = LatentCache::open(cache)?;
    cache.verify(|_, _| {})?;
    Ok(cache)
}

fn encode(
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
    /// Position in the run of the loader's next image.
    position: u64,
}

impl<'a> LiveFeatures<'a> {
    pub(crate) fn start(
        photos: &Photos,
        order: &'a EpochOrder,
        extractor: &'a FeatureExtractor<'a>,
        position: u64,
    ) -> Result<Self, TrainError> {
        let images: Box<dyn Iterator<Item = usize> + 'a> =
            Box::new((position..).map(|it| order.at(it).image));
        Ok(Self { extractor, loader: photos.load(images)?, position })
    }

    /// Features of the next images, which must be those at `positions`.
    pub(crate) fn next(&mut self, positions: Range<u64>, order: &EpochOrder) -> Result<Features, TrainError> {
        if self.position != positions.start {
            let expected = format!("images from position {}, in the order of the run", self.position);
            return Err(TrainError::data(expected, positions.start.to_string()));
        }
        let mut tokens = Vec::new();
        while self.position < positions.end {
            let count = (positions.end - self.position).min(FEATURE_BATCH as u64);
            let mut images = Vec::with_capacity(count as usize);
            for position in self.position..self.position + count {
                let Some(sample) = self.loader.next() else { break };
                let mut image = sample?.pixels;
                if order.at(position).flipped {
                    image.flip_horizontal();
                }
                images.push(image);
            }
            tokens.push((self.extractor.extract)(&pixels(&images)?)?);
            self.position += count;
        }
        Ok(Features { tokens: Tensor::cat(&tokens, 0)?, grid: self.extractor.shape.grid })
    }
}
