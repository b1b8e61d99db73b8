//! Photos as pixels, and as latents in a cache.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use ddt_adapters::from_rgb8;
use ddt_data::{ClassList, ImageFolder, Loader, LoaderOptions, OnCorrupt, Rgb8};
use ddt_train::{CacheContent, EncodedImages, LatentCache, LatentCacheWriter};

use crate::{
    generate::Interrupted,
    progress::{Cancel, Counting, say},
    train::{
        frozen::{Encoder, Extractor},
        settings::Images,
    },
};

/// Photos that are encoded at once.
const BATCH: usize = 64;

/// Bytes of one file of a cache, about.
const SHARD_BYTES: usize = 32 << 20;

/// A folder of photos that a run learns from, or is measured on.
pub struct Photos {
    /// The files.
    pub folder: Arc<ImageFolder>,
    options: LoaderOptions,
}

impl Photos {
    /// Lists a folder of class folders.
    ///
    /// # Errors
    ///
    /// A folder without classes, a class without images, a class that is not in the list.
    pub fn open(folder: &Path, images: &Images) -> Result<Self> {
        let folder = match &images.class_list {
            None => ImageFolder::open(folder)?,
            Some(list) => ImageFolder::open_with(folder, &ClassList::read(list)?)?,
        };
        let mut options = LoaderOptions::new(images.size, images.threads);
        if images.skip_corrupt {
            options.on_corrupt = OnCorrupt::Skip;
        }
        Ok(Self { folder: Arc::new(folder), options })
    }

    /// Names of the classes, in label order; a label without a folder has its number.
    #[must_use]
    pub fn classes(&self) -> Vec<String> {
        let mut names: Vec<String> =
            (0..self.folder.num_classes()).map(|label| format!("class {label}")).collect();
        for class in self.folder.classes() {
            if let Some(name) = names.get_mut(class.label as usize) {
                *name = class.name.clone().unwrap_or_else(|| class.folder.clone());
            }
        }
        names
    }

    /// The photos named, decoded ahead, in that order.
    ///
    /// # Errors
    ///
    /// When no threads can be had.
    pub fn load<I: Iterator<Item = usize>>(&self, order: I) -> Result<Loader<I>> {
        Ok(Loader::new(self.folder.clone(), order, self.options)?)
    }
}

/// Pixels in `[-1, 1]`, `(B, 3, H, W)`, of images of one size.
///
/// # Errors
///
/// When their sizes differ.
pub fn to_pixels(images: &[&Rgb8]) -> Result<Tensor> {
    let one =
        |it: &&Rgb8| from_rgb8(it.as_bytes(), (it.height() as usize, it.width() as usize), &Device::Cpu);
    let pixels = images.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&pixels, 0)?)
}

/// Left for right, `(B, C, H, W)`.
///
/// # Errors
///
/// Any other shape.
pub fn mirrored(pixels: &Tensor) -> Result<Tensor> {
    let width = pixels.dims4()?.3 as u32;
    let order = Tensor::from_iter((0..width).rev(), pixels.device())?;
    Ok(pixels.index_select(&order, 3)?)
}

/// Opens the cache of a folder's latents, after encoding what is not in it yet.
///
/// # Errors
///
/// Photos that cannot be read, a cache of other photos or another autoencoder, a disk that is full;
/// [`Interrupted`], and then the same call goes on.
pub fn cached(
    photos: &Photos,
    images: &Images,
    cache: &Path,
    encoder: &Encoder,
    extractor: Option<&Extractor>,
    cancel: &Cancel,
) -> Result<LatentCache> {
    let size = images.size;
    let shape = encoder.latent_shape(size)?;
    let features = extractor.map(|it| it.shape(size)).transpose()?;
    let mut made_from = BTreeMap::from([
        ("images".to_owned(), photos.folder.identity()?),
        ("size".to_owned(), size.to_string()),
        ("autoencoder".to_owned(), encoder.identity.clone()),
        ("skip_corrupt".to_owned(), images.skip_corrupt.to_string()),
    ]);
    if let Some(it) = extractor {
        made_from.insert("features".to_owned(), it.identity.clone());
    }
    let content = CacheContent {
        made_from,
        classes: photos.classes(),
        shape,
        posterior: encoder.has_posterior(),
        flips: images.flips,
        features,
    };
    let per_image = 4 * content.values_per_image();
    let mut writer = LatentCacheWriter::open(cache, content, DType::F16, SHARD_BYTES / per_image.max(1))?;
    if !writer.is_finished() {
        encode(photos, images, &mut writer, encoder, extractor, cancel)
            .with_context(|| format!("encoding {}", photos.folder.root().display()))?;
        writer.finish()?;
    }
    let cache = LatentCache::open(cache)?;
    cache.verify(|_, _| {})?;
    Ok(cache)
}

fn encode(
    photos: &Photos,
    images: &Images,
    writer: &mut LatentCacheWriter,
    encoder: &Encoder,
    extractor: Option<&Extractor>,
    cancel: &Cancel,
) -> Result<()> {
    let (begin, end) = (usize::try_from(writer.source_end())?, photos.folder.len());
    let mut loader = photos.load(begin..end)?;
    let mut progress = Counting::start("encoding", end as u64);
    let mut position = begin;
    while position < end {
        if cancel.is_requested() {
            return Err(Interrupted.into());
        }
        let samples = loader.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        // None are left where the last ones were skipped.
        position = samples.last().map_or(end, |it| it.index + 1);
        let fields = if samples.is_empty() {
            BTreeMap::new()
        } else {
            let pixels = to_pixels(&samples.iter().map(|it| &it.pixels).collect::<Vec<_>>())?;
            fields_of(&pixels, images.flips, encoder, extractor)?
        };
        let labels = samples.iter().filter_map(|it| it.label).collect();
        writer.push(EncodedImages { labels, fields }, position as u64)?;
        progress.reached(position as u64);
    }
    let skipped = loader.skipped();
    if skipped.count > 0 {
        say(&format!("passed over {} files that are no images:", skipped.count));
        for it in &skipped.files {
            say(&format!("  {}: {}", it.path.display(), it.reason));
        }
    }
    Ok(())
}

fn fields_of(
    pixels: &Tensor,
    flips: bool,
    encoder: &Encoder,
    extractor: Option<&Extractor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut fields = BTreeMap::new();
    let mut add = |prefix: &str, pixels: &Tensor| -> Result<()> {
        let (latents, std) = encoder.encode(pixels)?;
        fields.insert(format!("{prefix}latents"), latents);
        if let Some(std) = std {
            fields.insert(format!("{prefix}std"), std);
        }
        if let Some(extractor) = extractor {
            fields.insert(format!("{prefix}features"), extractor.features(pixels)?.tokens);
        }
        Ok(())
    };
    add("", pixels)?;
    if flips {
        add("flipped.", &mirrored(pixels)?)?;
    }
    Ok(fields)
}
