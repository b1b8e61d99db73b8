//! Two-dimensional convolution, lowered to a matrix product on the CPU.
//!
//! candle's own CPU convolution gathers its patches element by element; here whole image rows are
//! copied, and the product runs on blocks of bounded size. Other devices and types use candle's.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use rayon::prelude::*;

/// Elements of one block of gathered patches: 16 MiB of `f32`.
const MAX_BLOCK: usize = 1 << 22;

/// Kernel side, stride and zero padding, the same for rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) pad_before: usize,
    pub(crate) pad_after: usize,
}

impl Geometry {
    /// A 1x1 convolution: one matrix over the channels.
    pub(crate) const POINT: Self = Self { kernel: 1, stride: 1, pad_before: 0, pad_after: 0 };
    /// A 3x3 convolution that keeps the size.
    pub(crate) const SAME: Self = Self { kernel: 3, stride: 1, pad_before: 1, pad_after: 1 };
    /// A 3x3 convolution that halves the size, padded on the right and below only.
    pub(crate) const HALVE_PAD_AFTER: Self = Self { kernel: 3, stride: 2, pad_before: 0, pad_after: 1 };

    /// Output length along a side of `len`, or `None` if the kernel does not fit.
    fn out_len(&self, len: usize) -> Option<usize> {
        let free = (len + self.pad_before + self.pad_after).checked_sub(self.kernel)?;
        Some(free / self.stride + 1)
    }
}

/// A convolution with square kernel: `(B, in, H, W) -> (B, out, H', W')`.
#[derive(Debug, Clone)]
pub(crate) struct Conv2d {
    weight: Tensor, // (out, in, kernel, kernel)
    bias: Option<Tensor>,
    geometry: Geometry,
}

impl Conv2d {
    /// Reads `weight` and `bias`.
    pub(crate) fn new(inp: usize, out: usize, geometry: Geometry, vb: VarBuilder) -> Result<Self> {
        let bias = Some(vb.get(out, "bias")?);
        Ok(Self { bias, ..Self::new_no_bias(inp, out, geometry, vb)? })
    }

    /// Reads `weight` alone.
    pub(crate) fn new_no_bias(inp: usize, out: usize, geometry: Geometry, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((out, inp, geometry.kernel, geometry.kernel), "weight")?;
        Ok(Self { weight, bias: None, geometry })
    }

    /// Adds what it reads to `all`, under `name`.
    pub(crate) fn parameters(&self, name: &str, all: &mut BTreeMap<String, Tensor>) {
        all.insert(format!("{name}.weight"), self.weight.clone());
        all.extend(self.bias.iter().map(|bias| (format!("{name}.bias"), bias.clone())));
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = xs.dims4()?;
        let (out, inp, _, _) = self.weight.dims4()?;
        if channels != inp {
            bail!("expected {inp} channels, got {channels} in {:?}", xs.shape());
        }
        let size = self.geometry.out_len(height).zip(self.geometry.out_len(width));
        let Some(size) = size.filter(|_| xs.elem_count() > 0) else {
            bail!("expected an image of at least {0}x{0}, got {1:?}", self.geometry.kernel, xs.shape());
        };
        let ys = if !xs.device().is_cpu() || xs.dtype() != DType::F32 {
            self.forward_candle(xs)?
        } else if self.geometry == Geometry::POINT {
            self.forward_point(xs)?
        } else {
            self.forward_lowered(&xs.contiguous()?, size)?
        };
        match &self.bias {
            Some(bias) => ys.broadcast_add(&bias.reshape((1, out, 1, 1))?),
            None => Ok(ys),
        }
    }

    fn forward_candle(&self, xs: &Tensor) -> Result<Tensor> {
        let Geometry { stride, pad_before, pad_after, .. } = self.geometry;
        if pad_before == pad_after {
            return xs.conv2d(&self.weight, pad_before, stride, 1, 1);
        }
        let padded = xs.pad_with_zeros(2, pad_before, pad_after)?.pad_with_zeros(3, pad_before, pad_after)?;
        padded.conv2d(&self.weight, 0, stride, 1, 1)
    }

    fn forward_point(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let weight = self.weight.flatten_from(1)?.broadcast_left(b)?; // (B, out, in)
        let ys = weight.matmul(&xs.reshape((b, c, h * w))?)?; // (B, out, H W)
        ys.reshape((b, (), h, w))
    }

    fn forward_lowered(&self, xs: &Tensor, (out_h, out_w): (usize, usize)) -> Result<Tensor> {
        let (b, c, _, _) = xs.dims4()?;
        let (geometry, area) = (self.geometry, out_h * out_w);
        let weight = self.weight.flatten_from(1)?; // (out, in kernel kernel)
        let max_pixels = MAX_BLOCK / (c * geometry.kernel * geometry.kernel);
        let mut images = Vec::new();
        if area <= max_pixels {
            for first in (0..b).step_by(max_pixels / area) {
                let block = first..b.min(first + max_pixels / area);
                let n = block.len();
                let patches = xs.apply_op1(Patches { geometry, images: block, rows: 0..out_h, out_w })?;
                let ys = weight.matmul(&patches)?.reshape(((), n, area))?; // (out, n, H' W')
                images.push(ys.transpose(0, 1)?.contiguous()?);
            }
        } else {
            let rows = (max_pixels / out_w).max(1);
            for image in 0..b {
                let mut bands = Vec::new();
                for first in (0..out_h).step_by(rows) {
                    let rows = first..out_h.min(first + rows);
                    let op = Patches { geometry, images: image..image + 1, rows, out_w };
                    bands.push(weight.matmul(&xs.apply_op1(op)?)?); // (out, rows W')
                }
                images.push(Tensor::cat(&bands, 1)?.unsqueeze(0)?);
            }
        }
        Tensor::cat(&images, 0)?.reshape((b, (), out_h, out_w))
    }
}

/// Gathers patches: `(B, C, H, W) -> (C kernel kernel, images rows W')`, zero outside the image.
struct Patches {
    geometry: Geometry,
    images: Range<usize>,
    /// Output rows.
    rows: Range<usize>,
    out_w: usize,
}

impl Patches {
    /// Fills `out` with what tap `(ky, kx)` sees in the image plane `plane`.
    fn fill(&self, plane: &[f32], width: usize, (ky, kx): (usize, usize), out: &mut [f32]) {
        let Geometry { stride, pad_before, .. } = self.geometry;
        for (row, out) in self.rows.clone().zip(out.chunks_exact_mut(self.out_w)) {
            let source = (row * stride + ky).checked_sub(pad_before);
            let Some(source) = source.and_then(|y| plane.get(y * width..(y + 1) * width)) else { continue };
            // Output columns x with 0 <= x stride + kx - pad_before < width.
            let first = pad_before.saturating_sub(kx).div_ceil(stride);
            let end = (width + pad_before).saturating_sub(kx).div_ceil(stride).min(self.out_w);
            if first >= end {
                continue;
            }
            let source = &source[first * stride + kx - pad_before..];
            if stride == 1 {
                out[first..end].copy_from_slice(&source[..end - first]);
            } else {
                for (out, &x) in out[first..end].iter_mut().zip(source.iter().step_by(stride)) {
                    *out = x;
                }
            }
        }
    }
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, channels, height, width) = layout.shape().dims4()?;
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("patches: expected contiguous") };
        let data = &storage.as_slice::<f32>()?[start..end];
        let taps = self.geometry.kernel * self.geometry.kernel;
        let band = self.rows.len() * self.out_w;
        let pixels = self.images.len() * band;
        let mut out = vec![0f32; channels * taps * pixels];
        out.par_chunks_mut(taps * pixels).enumerate().for_each(|(channel, out)| {
            for (tap, out) in out.chunks_exact_mut(pixels).enumerate() {
                let tap = (tap / self.geometry.kernel, tap % self.geometry.kernel);
                for (image, out) in self.images.clone().zip(out.chunks_exact_mut(band)) {
                    let plane = (image * channels + channel) * height * width;
                    self.fill(&data[plane..plane + height * width], width, tap, out);
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((channels * taps, pixels))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};
    use proptest::prelude::*;

    fn conv(inp: usize, out: usize, geometry: Geometry) -> Conv2d {
        let k = geometry.kernel;
        Conv2d { weight: random(3, (out, inp, k, k)), bias: Some(random(4, out)), geometry }
    }

    fn check(conv: &Conv2d, xs: &Tensor) {
        let got = conv.forward(xs).unwrap();
        let (out, _, _, _) = conv.weight.dims4().unwrap();
        let bias = conv.bias.as_ref().unwrap().reshape((1, out, 1, 1)).unwrap();
        let want = conv.forward_candle(xs).unwrap().broadcast_add(&bias).unwrap();
        assert_eq!(got.dims(), want.dims());
        assert!(rel_rms(&got, &want) < 1e-5, "{:?} {:?}", conv.geometry, xs.shape());
    }

    #[test]
    fn agrees_with_candle_when_one_image_needs_several_blocks() {
        check(&conv(128, 3, Geometry::SAME), &random(1, (2, 128, 70, 75)));
        check(&conv(128, 3, Geometry::HALVE_PAD_AFTER), &random(1, (1, 128, 141, 150)));
    }

    #[test]
    fn a_view_is_convolved_as_what_it_shows() {
        let xs = random(1, (2, 5, 6, 7)).transpose(2, 3).unwrap();
        check(&conv(5, 2, Geometry::SAME), &xs);
        check(&conv(5, 2, Geometry::POINT), &xs);
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let conv = conv(4, 2, Geometry::HALVE_PAD_AFTER);
        let error = conv.forward(&random(1, (1, 3, 8, 8))).unwrap_err().to_string();
        assert!(error.contains("expected 4 channels, got 3"), "{error}");
        assert!(conv.forward(&random(1, (1, 4, 1, 8))).is_err());
        assert!(conv.forward(&random(1, (4, 8, 8))).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_candle(
            (b, inp, out) in (1usize..4, 1usize..6, 1usize..5),
            (h, w) in (2usize..12, 2usize..12),
            geometry in prop::sample::select(vec![
                Geometry::POINT, Geometry::SAME, Geometry::HALVE_PAD_AFTER,
            ]),
        ) {
            check(&conv(inp, out, geometry), &random(7, (b, inp, h, w)));
        }
    }
}
