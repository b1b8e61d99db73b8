#![doc = include_str!("../README.md")]
//!
//! # Contents
//!
//! - [`Rgb8`] is an image of 8-bit red, green and blue.
//! - [`encode_png`] and [`read_png`] keep it with key-value text.
//! - [`Grid`] arranges images with row and column labels; [`HeatMap`] shows a square matrix.

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
