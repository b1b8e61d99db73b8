//! The batches of a run, in its order.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use ddt_data::Loader;
use ddt_train::{Batch, EpochOrder, LatentDataset};

use crate::train::{
    frozen::Extractor,
    photos::{Photos, mirrored, to_pixels},
};

/// Images whose features are computed at once.
const FEATURE_BATCH: usize = 32;

/// Where batches come from: cached latents, and features that are cached too or computed here.
pub struct Batches<'a> {
    data: &'a LatentDataset,
    order: &'a EpochOrder,
    live: Option<LiveFeatures<'a>>,
}

/// Features computed from the photos, which are decoded ahead in the order of the run.
pub struct LiveFeatures<'a> {
    extractor: &'a Extractor,
    loader: Loader<Box<dyn Iterator<Item = usize> + 'a>>,
    /// Position in the run of the loader's next image.
    position: u64,
}

impl<'a> LiveFeatures<'a> {
    /// Starts decoding at a position of the run.
    ///
    /// # Errors
    ///
    /// When no threads can be had.
    pub fn start(
        photos: &Photos,
        order: &'a EpochOrder,
        extractor: &'a Extractor,
        position: u64,
    ) -> Result<Self> {
        let images: Box<dyn Iterator<Item = usize> + 'a> =
            Box::new((position..).map(|it| order.at(it).image));
        Ok(Self { extractor, loader: photos.load(images)?, position })
    }

    fn next(&mut self, positions: Range<u64>, order: &EpochOrder) -> Result<ddt_train::Features> {
        ensure!(self.position == positions.start, "expected the batches of a run in their order");
        let (mut tokens, mut grid) = (Vec::new(), None);
        while self.position < positions.end {
            let count = (positions.end - self.position).min(FEATURE_BATCH as u64);
            let samples = self.loader.by_ref().take(count as usize).collect::<Result<Vec<_>, _>>()?;
            let pixels = to_pixels(&samples.iter().map(|it| &it.pixels).collect::<Vec<_>>())?;
            let one = |i: usize| {
                let image = pixels.narrow(0, i, 1)?;
                if order.at(self.position + i as u64).flipped { mirrored(&image) } else { Ok(image) }
            };
            let pixels = Tensor::cat(&(0..samples.len()).map(one).collect::<Result<Vec<_>>>()?, 0)?;
            let features = self.extractor.features(&pixels)?;
            grid = Some(features.grid);
            tokens.push(features.tokens);
            self.position += count;
        }
        let grid = grid.context("expected a batch with images")?;
        Ok(ddt_train::Features { tokens: Tensor::cat(&tokens, 0)?, grid })
    }
}

impl<'a> Batches<'a> {
    /// Batches of `data` in `order`.
    #[must_use]
    pub fn new(data: &'a LatentDataset, order: &'a EpochOrder, live: Option<LiveFeatures<'a>>) -> Self {
        Self { data, order, live }
    }

    /// The images at some positions of the run.
    ///
    /// # Errors
    ///
    /// A cache or a photo that cannot be read.
    pub fn next(&mut self, positions: Range<u64>) -> Result<Batch> {
        let mut batch = self.data.batch(&self.order.picks(positions.clone()), &Device::Cpu)?;
        if let Some(live) = &mut self.live {
            batch.features = Some(live.next(positions, self.order)?);
        }
        Ok(batch)
    }
}
