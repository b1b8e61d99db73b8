//! The centre crop of training images.

use anyhow::Result;
use candle_core::{Device, Tensor};
use ddt_data::{Limits, decode_rgb8};
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

#[derive(Debug, Deserialize)]
struct Image {
    size: u32,
}

/// For each entry of `images`, the crop and its mean error.
pub(crate) fn center_crop(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let images: Vec<Image> = fixture.json("images")?;
    let mut comparisons = Vec::with_capacity(2 * images.len());
    for (i, image) in images.iter().enumerate() {
        let jpeg = fixture.tensor(&format!("in.jpeg.{i}"))?.to_vec1::<u8>()?;
        let crop = ddt_data::center_crop(&decode_rgb8(&jpeg, &Limits::default())?, image.size)?;
        let name = format!("out.{i}");
        let want: Vec<u8> = fixture.tensor(&name)?.flatten_all()?.to_vec1()?;
        let mean = mean_error(crop.as_bytes(), &want);
        let side = image.size as usize;
        let got = Tensor::from_vec(crop.into_bytes(), (side, side, 3), &Device::Cpu)?;
        comparisons.push(fixture.compare(&name, &got, Tolerance::CROP)?);
        let name = format!("{name}.mean_error");
        comparisons.push(Comparison::numbers(&name, &[mean], &[0.0], Tolerance::CROP_MEAN)?);
    }
    Ok(comparisons)
}

fn mean_error(got: &[u8], want: &[u8]) -> f64 {
    let sum: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / want.len().max(1) as f64
}
