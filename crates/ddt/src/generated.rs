//! Generated images with their record, as a PNG file.

use std::{path::Path, time::Duration};

use candle_core::{DType, Tensor};
use ddt_flow::Guidance;
use ddt_model::NetworkCalls;
use ddt_picture::{Grid, PictureError, Rgb8, encode_png, parse_png, read_png};
use serde::{Deserialize, Serialize};

use crate::{
    classes::ClassTable,
    config::{PipelineConfig, Request, name_of},
    error::{Context, Result, invalid},
    opened::Opened,
    share::Sharing,
};

/// Key of the record in a PNG file.
pub const RECORD_KEY: &str = "ddt:record";

/// The version of this library, which is part of every record.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that images depend on, and nothing that names a machine or a time.
///
/// The same record in the same version on the same instruction set means the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this library.
    pub version: String,
    /// Settings of the pipeline.
    pub pipeline: PipelineConfig,
    /// The request.
    pub request: Request,
    /// Names of the classes, in the order of the request.
    pub class_names: Vec<String>,
}

impl Record {
    /// The record of a request to a pipeline of these settings and classes.
    #[must_use]
    pub fn new(config: &PipelineConfig, classes: &ClassTable, request: Request) -> Self {
        let name = |it: &u32| classes.name(*it).unwrap_or_default().to_owned();
        let class_names = request.classes.iter().map(name).collect();
        Self { version: VERSION.to_owned(), pipeline: config.clone(), request, class_names }
    }

    /// Reads the record of a picture that [`Generated::png`] made.
    ///
    /// # Errors
    /// A file that is no PNG, or has no record.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_text(&read_png(path)?.1, path)
    }

    /// [`read`](Self::read) of bytes in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(png: &[u8], path: &Path) -> Result<Self> {
        Self::from_text(&parse_png(png, path)?.1, path)
    }

    fn from_text(text: &[(String, String)], path: &Path) -> Result<Self> {
        let Some((_, json)) = text.iter().find(|(key, _)| key == RECORD_KEY) else {
            return invalid(format!(
                "{} has no record {RECORD_KEY:?}: expected a picture that ddt made",
                path.display()
            ));
        };
        serde_json::from_str(json).context(format!("the record {RECORD_KEY:?} of {}", path.display()))
    }

    /// The record as JSON.
    ///
    /// # Errors
    /// A file name that is not Unicode.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

/// Images and how they were made.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The images, class by class.
    pub images: Vec<Rgb8>,
    /// Their latents, `(images, C, H, W)` f32.
    pub latents: Tensor,
    /// Record of their settings.
    pub record: Record,
    /// Time and calls of the network.
    pub report: Report,
}

/// Time of sampling and calls of the network.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Number of images.
    pub images: usize,
    /// Calls of each half of the network in one batch, the same for all batches.
    pub calls: NetworkCalls,
    /// Time without reading weights.
    pub elapsed: Duration,
}

impl Generated {
    /// A labelled grid: a row for each class, a column for each image.
    ///
    /// # Errors
    /// More images than fit on a page.
    pub fn page(&self) -> Result<Rgb8> {
        Ok(Texts::new(&self.record).grid(&self.images).draw()?)
    }

    /// The page as a PNG file that carries the record; equal records and images give equal bytes.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub fn png(&self) -> Result<Vec<u8>> {
        Ok(encode_png(&self.page()?, &[(RECORD_KEY, &self.record.to_json()?)])?)
    }

    /// Time and calls of the network, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let Report { images, calls, elapsed } = self.report;
        let seconds = elapsed.as_secs_f64();
        let noun = if images == 1 { "image" } else { "images" };
        let saved = 100.0 * (1.0 - calls.encoder as f64 / calls.decoder.max(1) as f64);
        let rate = images as f64 / seconds.max(1e-9);
        format!(
            "{images} {noun} in {seconds:.1} s, {rate:.3} images/s\nencoder calls {} of {} steps ({saved:.0}% saved)",
            calls.encoder, calls.decoder
        )
    }
}

/// Relative RMS error of each image's latents, `|latents - reference| / |reference|`.
///
/// # Shapes
/// `latents, reference: (B, ...)`; -> B numbers
///
/// # Errors
/// Different shapes.
pub fn relative_errors(latents: &Tensor, reference: &Tensor) -> Result<Vec<f64>> {
    let square_sums = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.flatten_from(1)?.sum(1)?.to_vec1::<f64>();
    let errors = square_sums(&(latents - reference)?)?;
    let lengths = square_sums(reference)?;
    Ok(errors.iter().zip(&lengths).map(|(error, length)| (error / length).sqrt()).collect())
}

impl Opened {
    /// Checks that the images of a request fit on one page.
    ///
    /// # Errors
    /// A page that is too large for a PNG viewer or for memory.
    pub fn check_page(&self, request: &Request) -> Result<()> {
        let record = Record::new(self.config(), self.classes(), request.clone());
        let (height, width) = self.image_size();
        let columns = request.images_per_class as usize;
        let checked: Result<(), PictureError> =
            Texts::new(&record).grid(&[]).check_size(columns, width, height);
        checked
            .context(format!("{} classes of {columns} images do not fit on one page", request.classes.len()))
    }
}

/// The words around the images, a function of the record alone.
struct Texts {
    rows: Vec<String>,
    columns: Vec<String>,
    title: String,
    footer: String,
}

impl Texts {
    fn new(record: &Record) -> Self {
        let Record { pipeline, request, class_names, .. } = record;
        let row = |(label, name): (&u32, &String)| {
            // Synonyms are for finding a class, not for its label.
            format!("{label} {}", name.split(',').next().unwrap_or(name))
        };
        let rows = request.classes.iter().zip(class_names).map(row).collect();
        let columns = (0..request.images_per_class).map(|it| format!("#{it}")).collect();
        let (height, width) = pipeline.image_size.unwrap_or_default();
        let weights = pipeline.weights.from.display();
        let title = format!("DDT {weights}, {width} x {height} px, seed {}", request.seed);

        let guidance = pipeline.guidance.unwrap_or(Guidance::none());
        let (low, high) = guidance.interval();
        let away = if pipeline.guiding_network.is_some() { " from a guiding network" } else { "" };
        let encoder = match &pipeline.sharing {
            Sharing::None => "encoder at every step".to_owned(),
            other => format!("encoder shared, {other}"),
        };
        let network = pipeline.network.as_ref().map(name_of).unwrap_or_default();
        let hash: String = pipeline.weights.sha256.iter().flat_map(|it| it.chars().take(12)).collect();
        let footer = format!(
            "{} x {}, guidance {}{away} in ({low}, {high}), {encoder}, {network} sha256:{hash}",
            pipeline.grid().num_steps(),
            pipeline.solver.as_str(),
            guidance.scale()
        );
        Self { rows, columns, title, footer }
    }

    fn grid<'a>(&'a self, images: &'a [Rgb8]) -> Grid<'a> {
        let Self { rows, columns, title, footer } = self;
        Grid { row_labels: rows, column_labels: columns, images, title, footer }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn errors_are_relative_and_per_image() {
        let tensor = |values: [f32; 4]| Tensor::from_slice(&values, (2, 1, 1, 2), &Device::Cpu).unwrap();
        let errors = relative_errors(&tensor([3.0, 4.5, 0.0, 2.0]), &tensor([3.0, 4.0, 0.0, 2.0])).unwrap();
        assert_eq!(errors, [0.1, 0.0]);
        assert!(relative_errors(&tensor([1.0; 4]), &tensor([1.0; 4]).narrow(0, 0, 1).unwrap()).is_err());
    }
}
