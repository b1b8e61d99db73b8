//! Pooling over 3x3 windows of images that lie as (B, H, W, C).

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{is_ours, slice};

/// Which 3x3 window, and what is taken of it; pixels outside the image do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The largest, at every second pixel, without padding.
    MaxHalve,
    /// The largest, at every pixel.
    MaxSame,
    /// The mean, at every pixel.
    MeanSame,
}

impl Pool {
    /// Stride and padding.
    fn geometry(self) -> (usize, usize) {
        match self {
            Self::MaxHalve => (2, 0),
            Self::MaxSame | Self::MeanSame => (1, 1),
        }
    }
}

/// `(B, H, W, C) -> (B, H', W', C)`
pub(crate) fn pool(xs: &Tensor, pool: Pool) -> Result<Tensor> {
    let (_, height, width, _) = xs.dims4()?;
    let (stride, pad) = pool.geometry();
    if (height + 2 * pad).min(width + 2 * pad) < 3 || xs.elem_count() == 0 {
        bail!("expected images (B, H, W, C) of at least 3 x 3, got {:?}", xs.shape());
    }
    if is_ours(xs) {
        return xs.contiguous()?.apply_op1(pool);
    }
    let xs = xs.permute((0, 3, 1, 2))?.contiguous()?; // (B, C, H, W)
    let ys = match pool {
        Pool::MaxHalve => xs.max_pool2d_with_stride(3, stride)?,
        // Beyond the edge the edge is repeated, which changes no maximum.
        Pool::MaxSame => xs.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?.max_pool2d_with_stride(3, 1)?,
        Pool::MeanSame => {
            let mean = |xs: &Tensor| {
                xs.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.avg_pool2d_with_stride(3, 1)
            };
            let inside = mean(&Tensor::ones((1, 1, height, width), DType::F32, xs.device())?)?;
            mean(&xs)?.broadcast_div(&inside.to_dtype(xs.dtype())?)?
        }
    };
    ys.permute((0, 2, 3, 1))
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice("pool", xs, layout)?;
        let (b, height, width, channels) = layout.shape().dims4()?;
        let (stride, pad) = self.geometry();
        let along = |len: usize| (len + 2 * pad - 3) / stride + 1;
        let (out_h, out_w) = (along(height), along(width));
        let mut out = vec![0f32; b * out_h * out_w * channels];
        let seen =
            |at: usize, len: usize| (at * stride).saturating_sub(pad)..(at * stride + 3 - pad).min(len);
        out.par_chunks_mut(out_w * channels).enumerate().for_each(|(line, out)| {
            let (image, rows) = (line / out_h, seen(line % out_h, height));
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                let columns = seen(x, width);
                let count = (rows.len() * columns.len()) as f32;
                let pixels = rows.clone().flat_map(|row| {
                    columns.clone().map(move |column| ((image * height + row) * width + column) * channels)
                });
                for (i, at) in pixels.enumerate() {
                    let pixel = &xs[at..at + channels];
                    match self {
                        _ if i == 0 => out.copy_from_slice(pixel),
                        Self::MeanSame => out.iter_mut().zip(pixel).for_each(|(out, x)| *out += x),
                        // A comparison that keeps a NaN of either side.
                        _ => out.iter_mut().zip(pixel).for_each(|(out, &x)| {
                            *out = if x <= *out || out.is_nan() { *out } else { x };
                        }),
                    }
                }
                if *self == Self::MeanSame {
                    out.iter_mut().for_each(|out| *out /= count);
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((b, out_h, out_w, channels))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    #[test]
    fn agrees_with_candle() {
        for (h, w) in [(3, 3), (8, 5), (7, 4), (17, 17)] {
            let xs = random(1, (2, h, w, 5));
            for kind in [Pool::MaxHalve, Pool::MaxSame, Pool::MeanSame] {
                let want = pool(&xs.to_dtype(DType::F64).unwrap(), kind);
                let (got, want) = (pool(&xs, kind).unwrap(), want.unwrap());
                assert_eq!(got.dims(), want.dims());
                assert!(rel_rms(&got, &want) < 1e-6, "{h} {w} {kind:?}");
            }
        }
    }

    #[test]
    fn small_images_are_errors_and_nan_stays() {
        assert!(pool(&random(1, (1, 2, 8, 3)), Pool::MaxHalve).is_err());
        assert!(pool(&random(1, (0, 8, 8, 3)), Pool::MeanSame).is_err());
        for at in [0, 4, 8] {
            let mut values = vec![1f32; 9];
            values[at] = f32::NAN;
            let xs = Tensor::from_vec(values, (1, 3, 3, 1), &candle_core::Device::Cpu).unwrap();
            let y = pool(&xs, Pool::MaxHalve).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y[0].is_nan());
        }
    }
}
