//! The centre crop of training images.

use anyhow::Result;
use candle_core::{Device, Tensor};
use ddt_data::{Limits, center_crop, decode_rgb8};
use serde::Deserialize;

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

/// JPEG decoders differ by this much, in grey levels.
const LARGEST: f64 = 24.0;
const MEAN: f64 = 1.5;

#[derive(Debug, Deserialize)]
struct Image {
    size: u32,
}

/// For each entry of `images`, the crop and how far it is from the fixture's on average.
pub(crate) fn center_crop_kind(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let images: Vec<Image> = fixture.json("images")?;
    let mut comparisons = Vec::with_capacity(2 * images.len());
    for (i, image) in images.iter().enumerate() {
        let jpeg = fixture.tensor(&format!("in.jpeg.{i}"))?.to_vec1::<u8>()?;
        let crop = center_crop(&decode_rgb8(&jpeg, &Limits::default())?, image.size)?;
        let name = format!("out.{i}");
        let want = fixture.tensor(&name)?;
        let mean = mean_error(crop.as_bytes(), &want.flatten_all()?.to_vec1::<u8>()?);
        let side = image.size as usize;
        let got = Tensor::from_vec(crop.into_bytes(), (side, side, 3), &Device::Cpu)?;
        comparisons.push(Comparison::tensors(&name, &got, &want, Tolerance::Absolute(LARGEST))?);
        let name = format!("{name}.mean_error");
        comparisons.push(Comparison::numbers(&name, &[mean], &[0.0], Tolerance::Absolute(MEAN))?);
    }
    Ok(comparisons)
}

fn mean_error(got: &[u8], want: &[u8]) -> f64 {
    let sum: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / want.len().max(1) as f64
}
