//! Latents to images: the scale of each channel, the decoder, bytes.

use candle_core::{DType, Device, Tensor};
use ddt_adapters::{Decode, LatentSpace, to_rgb8, to_rgb8_down};
use ddt_model::LatentInfo;
use ddt_picture::Rgb8;

use crate::{config::Rounding, error::Result};

/// A decoder that threads share.
pub(crate) type Decoder = Box<dyn Decode + Send + Sync>;

/// A decoder of latents and pixels on the CPU that computes on a device.
struct OnDevice<D> {
    decoder: D,
    device: Device,
}

/// The decoder, which is on `device`, for latents on the CPU.
pub(crate) fn on(device: Device, decoder: impl Decode + Send + Sync + 'static) -> Decoder {
    if device.is_cpu() { Box::new(decoder) } else { Box::new(OnDevice { decoder, device }) }
}

impl<D: LatentSpace> LatentSpace for OnDevice<D> {
    fn latent_channels(&self) -> usize {
        self.decoder.latent_channels()
    }

    fn downscale(&self) -> usize {
        self.decoder.downscale()
    }
}

impl<D: Decode> Decode for OnDevice<D> {
    fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        self.decoder.decode(&latents.to_device(&self.device)?)?.to_device(&Device::Cpu)
    }
}

/// Mean and standard deviation of each latent channel, (1, C, 1, 1): a network generates latents of mean 0 and
/// standard deviation 1, whatever the autoencoder's own are.
///
/// ```text
/// latents = (z - mean) / std,   z = latents std + mean
/// ```
pub(crate) struct Scale {
    mean: Tensor,
    std: Tensor,
}

impl Scale {
    pub(crate) fn new(info: &LatentInfo) -> Result<Self> {
        let tensor = |values: &[f64]| {
            Tensor::from_slice(values, (1, values.len(), 1, 1), &Device::Cpu)?.to_dtype(DType::F32)
        };
        Ok(Self { mean: tensor(&info.mean)?, std: tensor(&info.std)? })
    }
}

/// Decodes latents of a network that was trained on latents with the statistics `info`.
///
/// # Shapes
/// `latents: (B, C, H, W)`; -> B images
///
/// # Errors
/// Latents of other channels than the decoder or the statistics have, or with NaN or infinity.
pub fn decode_latents(decoder: &dyn Decode, info: &LatentInfo, latents: &Tensor) -> Result<Vec<Rgb8>> {
    decode(decoder, Some(&Scale::new(info)?), latents, Rounding::Nearest)
}

/// Decodes latents.
///
/// # Shapes
/// `(B, C, H, W)` -> B images
pub(crate) fn decode(
    decoder: &dyn Decode,
    scale: Option<&Scale>,
    latents: &Tensor,
    rounding: Rounding,
) -> Result<Vec<Rgb8>> {
    let pixels = match scale {
        None => decoder.decode(latents)?,
        Some(Scale { mean, std }) => decoder.decode(&latents.broadcast_mul(std)?.broadcast_add(mean)?)?,
    };
    let (_, _, height, width) = pixels.dims4()?;
    let images = match rounding {
        Rounding::Nearest => to_rgb8(&pixels)?,
        Rounding::Down => to_rgb8_down(&pixels)?,
    };
    Ok(images.into_iter().map(|it| Rgb8::new(width as u32, height as u32, it)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use ddt_adapters::PixelSpace;

    use super::*;

    fn info(mean: &[f64], std: &[f64]) -> LatentInfo {
        let (mean, std) = (mean.to_vec(), std.to_vec());
        LatentInfo { autoencoder: "pixels".to_owned(), height: 1, width: 1, mean, std }
    }

    #[test]
    fn each_channel_is_scaled_back() {
        let scale = Scale::new(&info(&[0.5, 0.0, -1.0], &[0.5, 1.0, 2.0])).unwrap();
        let latents = Tensor::new(&[[[[1f32]], [[1.0]], [[0.0]]]], &Device::Cpu).unwrap();
        let images = decode(&PixelSpace, Some(&scale), &latents, Rounding::Nearest).unwrap();
        assert_eq!(images[0].as_bytes(), [255, 255, 0]);
        let plain = |rounding| decode(&PixelSpace, None, &latents, rounding).unwrap().remove(0);
        assert_eq!(plain(Rounding::Nearest).as_bytes(), [255, 255, 128]);
        assert_eq!(plain(Rounding::Down).as_bytes(), [255, 255, 127]);
        // Statistics of other latents.
        assert!(decode_latents(&PixelSpace, &info(&[0.0; 2], &[1.0; 2]), &latents).is_err());
    }
}
