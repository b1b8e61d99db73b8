//! Pixels in [-1, 1] to bytes and back.

use candle_core::{Device, Tensor};

/// Why pixels could not become bytes, or bytes pixels.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Rgb8Error {
    /// A pixel is NaN or infinite.
    #[error(
        "image {image} of the batch has a non-finite pixel ({value}); expected numbers, so the latent or the weights are broken"
    )]
    NotFinite {
        /// Position in the batch.
        image: usize,
        /// The first such value.
        value: f32,
    },
    /// The number of bytes is not `height * width * 3`.
    #[error("expected {expected} bytes for {height} by {width} RGB pixels, got {got}")]
    Length {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// `height * width * 3`.
        expected: usize,
        /// The number of bytes given.
        got: usize,
    },
    /// A tensor of another shape or type.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Pixels to bytes: a `Vec` per image, rows of interleaved red, green, blue.
///
/// ```text
/// byte = clamp(floor(127.5 x + 128), 0, 255)
/// ```
///
/// # Shapes
/// `(B, 3, H, W)` in `[-1, 1]`, values outside are clamped, to `B` times `H W 3` bytes. Memory in the order
/// (B, H, W, 3), as decoders give it, is not copied into another first.
///
/// # Errors
/// [`Rgb8Error::NotFinite`] for a NaN or an infinity, which never becomes a black picture;
/// [`Rgb8Error::Tensor`] for any other shape.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// let red = Tensor::new(&[[[[1f32]], [[-1.0]], [[-1.0]]]], &Device::Cpu)?;
/// assert_eq!(ddt_adapters::to_rgb8(&red)?, [[255, 0, 0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn to_rgb8(pixels: &Tensor) -> Result<Vec<Vec<u8>>, Rgb8Error> {
    to_bytes(pixels, 128.0)
}

/// [`to_rgb8`] that rounds down, as images are written for the Fréchet distances of arXiv:2510.11690.
///
/// ```text
/// byte = clamp(floor(127.5 x + 127.5), 0, 255)
/// ```
///
/// # Errors
/// As [`to_rgb8`].
pub fn to_rgb8_down(pixels: &Tensor) -> Result<Vec<Vec<u8>>, Rgb8Error> {
    to_bytes(pixels, 127.5)
}

/// `clamp(floor(127.5 x + offset), 0, 255)`
fn to_bytes(pixels: &Tensor, offset: f32) -> Result<Vec<Vec<u8>>, Rgb8Error> {
    let (batch, channels, _, _) = pixels.dims4()?;
    if channels != 3 {
        let shape = pixels.shape();
        return Err(candle_core::Error::Msg(format!("expected pixels (B, 3, H, W), got {shape:?}")).into());
    }
    let pixels = pixels.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
    (0..batch)
        .map(|image| {
            let values = pixels.get(image)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
            match values.iter().find(|x| !x.is_finite()) {
                Some(&value) => Err(Rgb8Error::NotFinite { image, value }),
                None => Ok(values.into_iter().map(|x| byte(x, offset)).collect()),
            }
        })
        .collect()
}

/// Bytes of one image, rows of interleaved red, green, blue, to pixels `byte / 127.5 - 1`.
///
/// # Shapes
/// `H W 3` bytes to `(1, 3, H, W)` in `[-1, 1]`, `f32`: a view of memory in the order (1, H, W, 3), which encoders
/// take as it is.
///
/// # Errors
/// [`Rgb8Error::Length`] unless there are `height * width * 3` bytes.
pub fn from_rgb8(
    bytes: &[u8],
    (height, width): (usize, usize),
    device: &Device,
) -> Result<Tensor, Rgb8Error> {
    let expected = height.saturating_mul(width).saturating_mul(3);
    if bytes.len() != expected {
        return Err(Rgb8Error::Length { height, width, expected, got: bytes.len() });
    }
    let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let rows = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?;
    Ok(rows.to_device(device)?.permute((0, 3, 1, 2))?)
}

fn byte(x: f32, offset: f32) -> u8 {
    // The cast saturates, which is the clamp.
    (127.5 * x + offset).floor() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        let bytes: Vec<u8> = (0..=255).chain(0..=31).collect(); // 8 * 12 * 3
        let pixels = from_rgb8(&bytes, (8, 12), &Device::Cpu).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 8, 12]);
        assert_eq!(to_rgb8(&pixels).unwrap(), [bytes]);
    }

    #[test]
    fn rounding_is_floor_and_overshoot_is_clamped() {
        let bytes = |values: [f32; 5], offset| values.map(|x| byte(x, offset));
        assert_eq!(bytes([-7.0, -1.0, 0.0, 1.0, 7.0], 128.0), [0, 0, 128, 255, 255]);
        assert_eq!(bytes([-7.0, -1.0, 0.0, 1.0, 7.0], 127.5), [0, 0, 127, 255, 255]);
        // 127.5 x + 128 just below and at 129.
        assert_eq!([0.0078, 0.0079].map(|x| byte(x, 128.0)), [128, 129]);
        // Rounded down, white is exactly 1 or more.
        assert_eq!([0.9999, 1.0].map(|x| byte(x, 127.5)), [254, 255]);
        let grey = Tensor::new(&[[[[0.0079f32]], [[0.0]], [[0.99]]]], &Device::Cpu).unwrap();
        assert_eq!(to_rgb8(&grey).unwrap(), [[129, 128, 254]]);
        assert_eq!(to_rgb8_down(&grey).unwrap(), [[128, 127, 253]]);
    }

    #[test]
    fn a_non_finite_pixel_is_an_error_that_names_the_image() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0f32; 2 * 3 * 4];
            values[17] = bad;
            let pixels = Tensor::from_vec(values, (2, 3, 2, 2), &Device::Cpu).unwrap();
            assert!(matches!(to_rgb8(&pixels), Err(Rgb8Error::NotFinite { image: 1, .. })), "{bad}");
        }
    }

    #[test]
    fn other_shapes_and_lengths_are_errors() {
        let grey = Tensor::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(to_rgb8(&grey), Err(Rgb8Error::Tensor(_))));
        assert!(matches!(
            from_rgb8(&[0; 11], (2, 2), &Device::Cpu),
            Err(Rgb8Error::Length { expected: 12, .. })
        ));
        assert!(from_rgb8(&[], (usize::MAX, 2), &Device::Cpu).is_err());
    }
}
