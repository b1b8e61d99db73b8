//! The centre crop of ADM (Dhariwal and Nichol 2021), which ImageNet models are trained and judged on.

use crate::{
    error::ImageError,
    resample::{Filter, Source, Window, resample},
    rgb8::Rgb8,
};

/// Largest side of a crop, in pixels.
pub const MAX_CROP_SIZE: u32 = 8192;

/// Crops the middle square and scales it to `size` pixels a side.
///
/// ```text
/// while min(w, h) >= 2 size:  (w, h) = (w div 2, h div 2), box filter
/// scale = size / min(w, h);   (w, h) = (round(w scale), round(h scale)), bicubic, a = -0.5, antialiased
/// crop at ((w - size) div 2, (h - size) div 2)
/// ```
///
/// Sides are rounded half to even, as Python does. From the same decoded pixels the result equals what the
/// published preprocessing gives with Pillow up to 12.3.0, to the last bit; only JPEG decoders differ. (Pictures
/// a hundred times as tall as wide, and many tall ones since Pillow 13, Pillow resamples columns first, which
/// moves last bits.) An image of `size x size` comes back as it is.
///
/// # Errors
/// [`ImageError::CropSize`] for a size of 0 or above [`MAX_CROP_SIZE`].
pub fn center_crop(image: &Rgb8, size: u32) -> Result<Rgb8, ImageError> {
    if !(1..=MAX_CROP_SIZE).contains(&size) {
        return Err(ImageError::CropSize { size, max: MAX_CROP_SIZE });
    }
    let side = size as usize;
    let (mut width, mut height) = (image.width() as usize, image.height() as usize);
    let mut halved: Option<Vec<u8>> = None;
    while width.min(height) >= 2 * side {
        let source = Source { width, height, bytes: halved.as_deref().unwrap_or(image.as_bytes()) };
        (width, height) = (width / 2, height / 2);
        let whole = Window { columns: 0..width, rows: 0..height };
        halved = Some(resample(source, (width, height), &whole, Filter::Box));
    }
    let source = Source { width, height, bytes: halved.as_deref().unwrap_or(image.as_bytes()) };
    let scale = f64::from(size) / width.min(height) as f64;
    let scaled = |side: usize| (side as f64 * scale).round_ties_even() as usize;
    let (width, height) = (scaled(width), scaled(height));
    let middle = |length: usize| (length - side) / 2..(length - side) / 2 + side;
    let window = Window { columns: middle(width), rows: middle(height) };
    Rgb8::new(size, size, resample(source, (width, height), &window, Filter::Bicubic))
}
