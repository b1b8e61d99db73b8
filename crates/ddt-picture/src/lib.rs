//! RGB pictures: one image type, PNG files that carry settings, labelled grids and heat maps.
//!
//! - [`Rgb8`] is an image of 8-bit red, green and blue.
//! - [`encode_png`] and [`read_png`] keep it with key-value text.
//! - [`Grid`] arranges images with row and column labels; [`HeatMap`] shows a square matrix.
//!
//! ```
//! use ddt_picture::{Grid, Rgb8, encode_png};
//!
//! let images = vec![Rgb8::filled(32, 32, [200, 120, 40])?; 4];
//! let rows = ["goldfish".to_owned(), "golden retriever".to_owned()];
//! let page = Grid { row_labels: &rows, images: &images, title: "two seeds", ..Grid::default() }.draw()?;
//! assert!(page.width() > 2 * 128);
//! let file = encode_png(&page, &[("settings", "{\"seed\": 0}")])?;
//! assert!(file.starts_with(b"\x89PNG"));
//! # Ok::<(), ddt_picture::PictureError>(())
//! ```

#![forbid(unsafe_code)]

mod canvas;
mod grid;
mod heat_map;
mod png_file;
mod rgb8;

pub use crate::{
    grid::Grid,
    heat_map::HeatMap,
    png_file::{encode_png, parse_png, read_png},
    rgb8::{PictureError, Rgb8},
};
