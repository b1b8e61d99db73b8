//! Convolution of images whose channels are stored together: a GEMM whose tasks gather their patches.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cpu::buffers::{Scratch, take};
use crate::cpu::element::Element;
use crate::cpu::gemm::{
    ASource, BiasActivation, Destination, Gather, Matrix, PackedB, RowOrder, collect, gemm,
};
use crate::cpu::pointwise::{Activation, Identity, map};
use crate::instruction_set::{Instructions, instructions};
use crate::op::{check_frozen, check_shape, with_slices};
use crate::packed_linear::{Packable, PackedWeights, for_packable};
use crate::pool2d::Window2d;

const NAME: &str = "packed_conv2d";

/// A two-dimensional convolution that is not trained, with packed weights in f32 or bf16, on the CPU.
///
/// ```text
/// y = activation(conv(x, weight) + bias + residual)
/// ```
///
/// An implicit GEMM: each task gathers the patches of its pixels into a buffer that fits its cache, a range of depths
/// at a time; neither the patches nor a padded image exist as a whole. Sums are f32, in the order kernel row, kernel
/// column, channel, and so is the result unless it is [`rounded`](Self::rounded). Not differentiable. Cloning is cheap.
#[derive(Clone)]
pub struct PackedConv2d {
    weights: Arc<Weights>,
    /// Of the result and of a residual.
    output: DType,
}

struct Weights {
    /// One convolution, or the four whose results are the pixels of each 2 x 2 of an upsampled image, row by row.
    phases: Vec<(Window2d, PackedWeights)>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    dtype: DType,
}

impl PackedConv2d {
    /// Packs `weight`, (O, C, rows, columns), f32 or bf16, with `bias`, (O), which is kept in f32.
    ///
    /// # Errors
    /// If a shape or a dtype is another, if the kernel is not the window's, or if a tensor is not on the CPU.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, window: Window2d) -> Result<Self> {
        Self::with(instructions(), weight, bias, window)
    }

    /// Packs a 3 x 3 convolution, (O, C, 3, 3), with padding 1, of an image whose pixels are first repeated to 2 x 2.
    ///
    /// Taps that see the same pixel are added: each of the four results at a pixel of the small image is a
    /// convolution of 2 x 2, so 16 multiplications replace 36.
    ///
    /// ```text
    /// rows of phase 0: x[y - 1] w[0] + x[y] (w[1] + w[2]);   of phase 1: x[y] (w[0] + w[1]) + x[y + 1] w[2]
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn upsampling(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::upsampling_with(instructions(), weight, bias)
    }

    fn with(
        instructions: Instructions,
        weight: &Tensor,
        bias: Option<&Tensor>,
        window: Window2d,
    ) -> Result<Self> {
        if window.stride == 0 || window.kernel.0 * window.kernel.1 == 0 {
            bail!("{NAME}: expected a window of at least one pixel and stride, got {window:?}");
        }
        Self::of_phases(instructions, weight, bias, window.kernel, vec![(window, weight.clone())])
    }

    fn upsampling_with(instructions: Instructions, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let wide = weight.to_dtype(DType::F32)?;
        let mut phases = Vec::new();
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let summed = taps_of_phase(&taps_of_phase(&wide, 2, row)?, 3, column)?;
            let (pad_before, pad_after) = ((1 - row, 1 - column), (row, column));
            let window = Window2d { kernel: (2, 2), stride: 1, pad_before, pad_after };
            phases.push((window, summed.to_dtype(weight.dtype())?));
        }
        Self::of_phases(instructions, weight, bias, (3, 3), phases)
    }

    fn of_phases(
        instructions: Instructions,
        weight: &Tensor,
        bias: Option<&Tensor>,
        kernel: (usize, usize),
        phases: Vec<(Window2d, Tensor)>,
    ) -> Result<Self> {
        let (outputs, inputs) = match *weight.dims() {
            [outputs, inputs, rows, columns] if (rows, columns) == kernel => (outputs, inputs),
            ref got => {
                bail!("{NAME}: expected weight of shape (O, C, {}, {}), got {got:?}", kernel.0, kernel.1)
            }
        };
        if !weight.device().is_cpu() {
            bail!("{NAME}: expected weight on the CPU, got {:?}", weight.device().location());
        }
        if let Some(bias) = bias {
            check_shape(NAME, "bias", bias, &[outputs])?;
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1()).transpose()?;
        let dtype = weight.dtype();
        let packed = |(window, weight): (Window2d, Tensor)| {
            Ok((window, for_packable!(NAME, dtype, pack(instructions, &weight))?))
        };
        let phases = phases.into_iter().map(packed).collect::<Result<_>>()?;
        Ok(Self { weights: Arc::new(Weights { phases, bias, inputs, outputs, dtype }), output: DType::F32 })
    }

    /// With results in the dtype of the weights, rounded once: for layers whose results are only multiplied again.
    pub fn rounded(self) -> Self {
        Self { output: self.weights.dtype, ..self }
    }

    /// The result for `xs`, which is f32 or in the dtype of the weights, to which it is rounded.
    ///
    /// # Shapes
    ///
    /// `xs`: (B, H, W, C); result: (B, H', W', O) as the window has it, or (B, 2 H, 2 W, O) when
    /// [upsampling](Self::upsampling).
    ///
    /// # Errors
    /// If the shape, the dtype or the device of `xs` is another, if it depends on a variable, or if the kernel does
    /// not fit.
    pub fn forward(&self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(xs, None, activation)
    }

    /// As [`forward`](Self::forward), adding a residual of the result's shape and dtype before the activation.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), if the residual's shape, dtype or device is another, and when upsampling.
    pub fn forward_add(&self, xs: &Tensor, residual: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(xs, Some(residual), activation)
    }

    fn run(&self, xs: &Tensor, residual: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        let (xs, dims) = self.check(xs)?;
        if let Some(residual) = residual {
            check_frozen(NAME, &[("residual", residual)])?;
            check_shape(NAME, "residual", residual, self.output_shape(dims)?.dims())?;
            if residual.dtype() != self.output || !residual.device().is_cpu() {
                let (want, got, at) = (self.output, residual.dtype(), residual.device().location());
                bail!("{NAME}: expected a residual in {want:?} on the CPU, got {got:?} on {at:?}");
            }
            if self.weights.phases.len() > 1 {
                bail!("{NAME}: expected no residual after upsampling, got {:?}", residual.shape());
            }
        }
        match (self.weights.dtype, self.output) {
            (DType::BF16, DType::BF16) => self.multiply::<bf16, bf16>(&xs, dims, residual, activation),
            (DType::BF16, _) => self.multiply::<bf16, f32>(&xs, dims, residual, activation),
            _ => self.multiply::<f32, f32>(&xs, dims, residual, activation),
        }
    }

    /// `xs` in the dtype of the weights, and its dimensions, if it is of the right kind.
    fn check(&self, xs: &Tensor) -> Result<(Tensor, Dims)> {
        let Weights { inputs, dtype, .. } = *self.weights;
        if ![dtype, DType::F32].contains(&xs.dtype()) || !xs.device().is_cpu() {
            let (got, at) = (xs.dtype(), xs.device().location());
            bail!("{NAME}: expected images in {dtype:?} or f32 on the CPU, got {got:?} on {at:?}");
        }
        check_frozen(NAME, &[("xs", xs)])?;
        let dims = match *xs.dims() {
            [images, height, width, channels] if channels == inputs => {
                Dims { images, height, width, channels }
            }
            ref got => bail!("{NAME}: expected images (B, H, W, {inputs}), got {got:?}"),
        };
        if xs.dtype() == dtype {
            return Ok((xs.clone(), dims));
        }
        let [rounded] = with_slices([xs], |xs: [&[f32]; 1]| map::<_, bf16, _, 1, 1>(Identity, xs))?;
        Ok((Tensor::from_vec(rounded, xs.shape(), &Device::Cpu)?, dims))
    }

    fn output_shape(&self, dims: Dims) -> Result<Shape> {
        let Weights { ref phases, outputs, .. } = *self.weights;
        let [(window, _), ..] = phases.as_slice() else { bail!("{NAME}: expected weights, got none") };
        let Some((height, width)) = window.output_size((dims.height, dims.width)) else {
            let (rows, columns) = window.kernel;
            bail!(
                "{NAME}: expected images of at least {rows} x {columns} with their padding, got {} x {}",
                dims.height,
                dims.width
            );
        };
        let scale = if phases.len() == 1 { 1 } else { 2 };
        Ok(Shape::from((dims.images, scale * height, scale * width, outputs)))
    }

    fn multiply<T: Packable, O: Element>(
        &self,
        xs: &Tensor,
        dims: Dims,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        let shape = self.output_shape(dims)?;
        let mut phases = Vec::new();
        for (window, packed) in &self.weights.phases {
            phases.push((*window, packed.get::<T>()?));
        }
        let run = |xs: &[T], residual: Option<&[O]>| -> Vec<O> {
            let (width, bias) = (self.weights.outputs, self.weights.bias.as_deref());
            let epilogue = BiasActivation { bias, residual, activation, width };
            collect(shape.elem_count(), |out| {
                for (index, &(window, packed)) in phases.iter().enumerate() {
                    let Some(size) = window.output_size((dims.height, dims.width)) else { continue };
                    let rows = dims.images * size.0 * size.1;
                    let depth = window.kernel.0 * window.kernel.1 * dims.channels;
                    let patches = Patches { xs, dims, window, size };
                    let order = match phases.len() {
                        1 => RowOrder::Same,
                        _ => RowOrder::Upsampled { columns: size.1, phase: (index / 2, index % 2) },
                    };
                    let a = match window {
                        Window2d::POINT => ASource::rows(xs, rows, depth),
                        _ => ASource::Gathered { source: &patches, rows, depth },
                    };
                    gemm(a, packed, &Destination::ordered(out, width, order), &epilogue);
                }
            })
        };
        let out = match residual {
            Some(residual) => {
                with_slices([xs], |[xs]| with_slices([residual], |[residual]| run(xs, Some(residual))))??
            }
            None => with_slices([xs], |[xs]| run(xs, None))?,
        };
        Tensor::from_vec(out, shape, &Device::Cpu)
    }
}

impl fmt::Debug for PackedConv2d {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weights { inputs, outputs, dtype, ref phases, ref bias } = *self.weights;
        f.debug_struct("PackedConv2d")
            .field("inputs", &inputs)
            .field("outputs", &outputs)
            .field("windows", &phases.iter().map(|it| it.0).collect::<Vec<_>>())
            .field("bias", &bias.is_some())
            .field("dtype", &dtype)
            .field("output", &self.output)
            .finish()
    }
}

/// A weight (O, C, rows, columns) as B, whose depths are in the order (rows, columns, C).
fn pack<T: Packable>(instructions: Instructions, weight: &Tensor) -> Result<PackedWeights> {
    let matrix = weight.permute((0, 2, 3, 1))?.flatten_from(1)?; // (O, rows columns C)
    let (outputs, depth) = matrix.dims2()?;
    with_slices([&matrix], |[matrix]| {
        T::weights(PackedB::with(instructions, Matrix::transposed(matrix, depth, outputs), Scratch::own))
    })
}

/// Of three taps along `dim`, the two of a phase: the first, and the sum of the others, or the reverse.
fn taps_of_phase(weight: &Tensor, dim: usize, phase: usize) -> Result<Tensor> {
    if weight.dim(dim)? != 3 {
        bail!("{NAME}: expected weight of shape (O, C, 3, 3), got {:?}", weight.shape());
    }
    let [a, b, c] = [0, 1, 2].map(|tap| weight.narrow(dim, tap, 1));
    let (a, b, c) = (a?, b?, c?);
    if phase == 0 { Tensor::cat(&[a, (b + c)?], dim) } else { Tensor::cat(&[(a + b)?, c], dim) }
}

/// B, H, W and C.
#[derive(Debug, Clone, Copy)]
struct Dims {
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
}

/// The patches that a window sees, (B H' W', rows columns C); zero outside the image.
struct Patches<'a, T> {
    xs: &'a [T],
    dims: Dims,
    window: Window2d,
    /// H' and W'.
    size: (usize, usize),
}

impl<T: Element> Gather<T> for Patches<'_, T> {
    fn gather(&self, row: usize, depths: Range<usize>, mut out: &mut [T]) {
        let Dims { height, width, channels, .. } = self.dims;
        let Window2d { kernel, stride, pad_before, .. } = self.window;
        let (line, column) = (row / self.size.1, row % self.size.1);
        let (image, line) = (line / self.size.0, line % self.size.0);
        // A row of the kernel sees one run of the image's line; `inside` are its elements that exist.
        let run = kernel.1 * channels;
        let left = column * stride;
        let first = pad_before.1.saturating_sub(left).min(kernel.1);
        let last = (width + pad_before.1).saturating_sub(left).clamp(first, kernel.1);
        let inside = first * channels..last * channels;
        let source = (left + first).saturating_sub(pad_before.1) * channels;
        let mut begin = depths.start;
        while !out.is_empty() {
            let (kernel_row, at) = (begin / run, begin % run);
            let len = (run - at).min(out.len());
            let part = take(&mut out, len);
            match (line * stride + kernel_row).checked_sub(pad_before.0).filter(|y| *y < height) {
                Some(y) => {
                    let [from, to] = [inside.start, inside.end].map(|it| it.clamp(at, at + len));
                    part[..from - at].fill(T::zero());
                    if from < to {
                        let source = (image * height + y) * width * channels + source + from - inside.start;
                        part[from - at..to - at].copy_from_slice(&self.xs[source..][..to - from]);
                    }
                    part[to - at..].fill(T::zero());
                }
                None => part.fill(T::zero()),
            }
            begin += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::instruction_sets;

    /// Whole numbers, whose sums are exact in any order.
    fn integers(shape: impl Into<Shape>, modulus: usize) -> Tensor {
        let shape = shape.into();
        let value = |i: usize| (i * i % modulus) as f32 - (modulus / 2) as f32;
        Tensor::from_vec((0..shape.elem_count()).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// candle's convolution of the padded image, channels last.
    fn plain(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, window: Window2d) -> Tensor {
        let (before, after) = (window.pad_before, window.pad_after);
        let xs = xs.permute((0, 3, 1, 2)).unwrap();
        let xs =
            xs.pad_with_zeros(2, before.0, after.0).unwrap().pad_with_zeros(3, before.1, after.1).unwrap();
        let ys = xs.contiguous().unwrap().conv2d(weight, 0, window.stride, 1, 1).unwrap();
        let ys = ys.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        match bias {
            Some(bias) => ys.broadcast_add(bias).unwrap(),
            None => ys,
        }
    }

    fn list(xs: &Tensor) -> Vec<f32> {
        xs.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn is_candles_convolution_in_both_dtypes_under_every_instruction_set() {
        let downsample = Window2d { pad_before: (0, 0), ..Window2d::new((3, 3), 2, (1, 1)) };
        let windows = [
            Window2d::POINT,
            Window2d::SAME_3,
            downsample,
            Window2d::new((3, 3), 2, (0, 0)),
            Window2d::new((3, 3), 2, (1, 1)),
            Window2d::new((1, 1), 2, (0, 0)),
            Window2d::new((5, 5), 1, (2, 2)),
            Window2d::new((1, 7), 1, (0, 3)),
            Window2d::new((7, 1), 1, (3, 0)),
            Window2d::new((4, 4), 4, (0, 0)),
            Window2d { kernel: (2, 2), stride: 1, pad_before: (1, 0), pad_after: (0, 1) },
            Window2d::new((3, 3), 1, (5, 4)),
            Window2d::new((3, 3), 1, (0, 0)),
            Window2d::new((2, 1), 1, (0, 0)),
        ];
        let sizes = [
            (2, 6, 19, 66, 3),
            (1, 3, 3, 1, 1),
            (2, 5, 4, 3, 40),
            (1, 8, 11, 7, 5),
            (1, 4, 4, 130, 33),
            (0, 4, 4, 2, 3),
        ];
        for instructions in instruction_sets() {
            for window in windows {
                for (images, height, width, inputs, outputs) in sizes {
                    let xs = integers((images, height, width, inputs), 7);
                    let weight = integers((outputs, inputs, window.kernel.0, window.kernel.1), 5);
                    let bias = integers(outputs, 11);
                    let packed = PackedConv2d::with(instructions, &weight, Some(&bias), window).unwrap();
                    let got = packed.forward(&xs, Activation::None);
                    let Some((rows, columns)) = window.output_size((height, width)) else {
                        assert!(got.is_err());
                        continue;
                    };
                    let got = got.unwrap();
                    assert_eq!(got.dims(), [images, rows, columns, outputs]);
                    if images == 0 {
                        continue;
                    }
                    let want = plain(&xs, &weight, Some(&bias), window);
                    assert_eq!(list(&got), list(&want), "{window:?} {:?}", xs.shape());
                    let residual = &integers(want.dims(), 13);
                    let got = packed.forward_add(&xs, residual, Activation::Relu).unwrap();
                    let want = (want + residual).unwrap().relu().unwrap();
                    assert_eq!(list(&got), list(&want), "{window:?} {:?}", xs.shape());

                    let half = |it: &Tensor| it.to_dtype(DType::BF16).unwrap();
                    let packed = PackedConv2d::with(instructions, &half(&weight), None, window).unwrap();
                    let want = plain(&xs, &weight, None, window);
                    for xs in [&xs, &half(&xs)] {
                        let got = packed.forward_add(xs, residual, Activation::None).unwrap();
                        assert_eq!(list(&got), list(&(&want + residual).unwrap()), "{window:?}");
                    }
                    let got = packed.rounded().forward(&half(&xs), Activation::None).unwrap();
                    assert_eq!((got.dtype(), list(&got)), (DType::BF16, list(&half(&want))), "{window:?}");
                }
            }
        }
    }

    #[test]
    fn an_upsampled_image_is_convolved_as_four_small_ones() {
        for instructions in instruction_sets() {
            for (images, height, width, inputs, outputs) in
                [(1, 1, 1, 1, 1), (2, 3, 5, 4, 3), (1, 9, 7, 70, 34)]
            {
                let xs = integers((images, height, width, inputs), 7);
                let (weight, bias) = (integers((outputs, inputs, 3, 3), 5), integers(outputs, 11));
                let upsampled = xs.reshape((images, height, 1, width, 1, inputs)).unwrap();
                let upsampled = upsampled.broadcast_as((images, height, 2, width, 2, inputs)).unwrap();
                let upsampled = upsampled.reshape((images, 2 * height, 2 * width, inputs)).unwrap();
                let want = plain(&upsampled, &weight, Some(&bias), Window2d::SAME_3);
                for dtype in [DType::F32, DType::BF16] {
                    let [xs, weight, bias, want] =
                        [&xs, &weight, &bias, &want].map(|it| it.to_dtype(dtype).unwrap());
                    let packed = PackedConv2d::upsampling_with(instructions, &weight, Some(&bias)).unwrap();
                    let got = packed.rounded().forward(&xs, Activation::None).unwrap();
                    assert_eq!((got.dims(), list(&got)), (want.dims(), list(&want)));
                }
            }
        }
    }

    #[test]
    fn views_are_convolved_as_what_they_show_and_other_tensors_are_errors() {
        let (weight, bias) = (integers((2, 5, 3, 3), 5), integers(2, 3));
        let packed = PackedConv2d::new(&weight, Some(&bias), Window2d::SAME_3).unwrap();
        let view = integers((2, 5, 6, 7), 7).permute((0, 2, 3, 1)).unwrap();
        let got = packed.forward(&view, Activation::None).unwrap();
        assert_eq!(list(&got), list(&plain(&view, &weight, Some(&bias), Window2d::SAME_3)));

        for shape in [vec![1, 8, 8, 3], vec![1, 0, 8, 5], vec![8, 8, 5]] {
            assert!(packed.forward(&integers(shape.clone(), 3), Activation::None).is_err(), "{shape:?}");
        }
        let xs = integers((1, 4, 4, 5), 7);
        assert!(packed.forward(&xs.to_dtype(DType::F64).unwrap(), Activation::None).is_err());
        assert!(packed.forward_add(&xs, &integers((1, 4, 3, 2), 3), Activation::None).is_err());
        let var = candle_core::Var::from_tensor(&xs).unwrap();
        let error = packed.forward(&var, Activation::None).unwrap_err().to_string();
        assert!(error.contains("depends on no variable"), "{error}");
        assert!(PackedConv2d::new(&weight, Some(&bias), Window2d::POINT).is_err());
        assert!(PackedConv2d::new(&weight, Some(&integers(3, 3)), Window2d::SAME_3).is_err());
        assert!(PackedConv2d::new(&weight.to_dtype(DType::F64).unwrap(), None, Window2d::SAME_3).is_err());
        assert!(PackedConv2d::new(&weight, None, Window2d { stride: 0, ..Window2d::SAME_3 }).is_err());
        assert!(PackedConv2d::upsampling(&integers((2, 5, 1, 1), 3), None).is_err());
    }
}
