//! A whole transformer block with packed weights.

use candle_core::{Device, Result, Tensor, bail};
use pulp::Simd;

use crate::attention::{self, Sizes};
use crate::cpu::buffers::Scratch;
use crate::cpu::element::Element;
use crate::cpu::gemm::{
    ASource, BiasActivation, Destination, Epilogue, Place, TileRow, collect, gemm, prefetch_row, widened,
};
use crate::cpu::lanes::update;
use crate::modulation::Modulation;
use crate::op::{check_alike, check_shape, dims_bld, with_slices};
use crate::packed_linear::{Packable, PackedLinear, for_packable};
use crate::packed_swiglu::{PackedSwiGlu, SwiGluGate};
use crate::rms_norm_modulate as norm;
use crate::rope::RopeTable;

const NAME: &str = "packed_block";

/// Weights of a [`packed_block`].
///
/// # Shapes
///
/// `norm1`, `norm2`: (D); `q_norm`, `k_norm`: (K); `qkv`: D to 3 D, without bias; `proj`: D to D; `gate`: D to F;
/// `w2`: F to D.
#[derive(Debug, Clone)]
pub struct PackedBlockWeights {
    /// The norm before the attention.
    pub norm1: Tensor,
    /// To queries, keys and values.
    pub qkv: PackedLinear,
    /// The queries' norm.
    pub q_norm: Tensor,
    /// The keys' norm.
    pub k_norm: Tensor,
    /// From the merged heads.
    pub proj: PackedLinear,
    /// The norm before the MLP.
    pub norm2: Tensor,
    /// To the MLP's hidden size.
    pub gate: PackedSwiGlu,
    /// From the MLP's hidden size.
    pub w2: PackedLinear,
}

/// The block of [`transformer_block`](fn@crate::transformer_block) with packed weights.
///
/// Intermediate results stay in pooled buffers. Gates and residual sums are epilogues of the GEMMs, so that each is
/// rounded once.
/// Not differentiable.
///
/// # Shapes
///
/// `x`: (B, L, D), in the weights' dtype; `modulation`: (B, 1, W) or (B, L, W), of which the block takes the
/// 6 D columns from `first` on; `rope`: L tokens of head size K; `num_heads`: N = D / K; result: (B, L, D).
///
/// # Errors
///
/// If a shape or a dtype is another, if a tensor is not on the CPU, or if `x` or `modulation` depends on a
/// variable.
pub fn packed_block(
    x: &Tensor,
    (modulation, first): (&Tensor, usize),
    weights: &PackedBlockWeights,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    let PackedBlockWeights { norm1, qkv, q_norm, k_norm, proj, norm2, gate, w2 } = weights;
    let named = [("norm1", norm1), ("q_norm", q_norm), ("k_norm", k_norm), ("norm2", norm2)];
    check_alike(NAME, &[&[("x", x), ("modulation", modulation)][..], &named].concat())?;
    if x.track_op() || modulation.track_op() {
        bail!("{NAME}: expected x and modulation that depend on no variable");
    }
    let sizes = Sizes::of_block(NAME, x, rope, num_heads)?;
    let width = modulation.dims().last().copied().unwrap_or(0);
    if first.checked_add(6 * d).is_none_or(|last| last > width) {
        bail!(
            "{NAME}: expected modulation with columns {first} to {first} + 6 x {d}, got {:?}",
            modulation.shape()
        );
    }
    let columns = Modulation::new(NAME, "modulation", modulation, (b, l), width)?.columns(first, 6 * d);
    for ((name, weight), len) in named.iter().zip([d, sizes.head_dim, sizes.head_dim, d]) {
        check_shape(NAME, name, weight, &[len])?;
    }
    let f = gate.sizes().1;
    let layers = [
        ("qkv", qkv.sizes(), (d, 3 * d), qkv.dtype()),
        ("proj", proj.sizes(), (d, d), proj.dtype()),
        ("gate", gate.sizes(), (d, f), gate.dtype()),
        ("w2", w2.sizes(), (f, d), w2.dtype()),
    ];
    for (name, got, want, dtype) in layers {
        if got != want || dtype != x.dtype() {
            let expected = x.dtype();
            bail!("{NAME}: expected {name} from and to {want:?} in {expected:?}, got {got:?} in {dtype:?}");
        }
    }
    if qkv.bias().is_some() {
        bail!("{NAME}: expected qkv without a bias");
    }
    let block = Block { weights, columns, rope, sizes, eps: eps as f32 };
    for_packable!(NAME, x.dtype(), Block::run(&block, x, modulation))
}

struct Block<'a> {
    weights: &'a PackedBlockWeights,
    /// Shift, scale and gate of the attention, then of the MLP.
    columns: Modulation,
    rope: &'a RopeTable,
    sizes: Sizes,
    eps: f32,
}

impl Block<'_> {
    fn run<T: Packable>(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor> {
        let PackedBlockWeights { norm1, qkv, q_norm, k_norm, proj, norm2, gate, w2 } = self.weights;
        let (shape, x, modulation) = (x.shape(), x.contiguous()?, modulation.contiguous()?);
        let (d, f) = gate.sizes();
        let rows = self.columns.count();
        let (mut narrow, mut middle) = (Scratch::take(rows * d), Scratch::take(rows * d));
        let mut wide = Scratch::take(rows * f.max(3 * d));
        let out = with_slices!(T; x, modulation, norm1, q_norm, k_norm, norm2 => {
            self.norm(x, norm1, modulation, 0, &mut narrow);
            let heads = &mut wide[..rows * 3 * d];
            let b = qkv.packed().get::<T>()?;
            gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(heads, 3 * d), &BiasActivation::<T>::bias(None, 3 * d));
            let inputs = attention::Inputs::new(heads, [q_norm, k_norm], self.rope.rotations(), self.sizes, self.eps);
            attention::forward_into(&inputs, &mut narrow);
            let gated = self.gate(x, modulation, 2, proj.bias());
            let b = proj.packed().get::<T>()?;
            gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(&mut middle, d), &gated);

            self.norm(&middle, norm2, modulation, 3, &mut narrow);
            let hidden = &mut wide[..rows * f];
            let b = gate.packed().get::<T>()?;
            gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(hidden, f), &SwiGluGate);
            let gated = self.gate(&middle, modulation, 5, w2.bias());
            let b = w2.packed().get::<T>()?;
            collect(rows * d, |out| {
                gemm(ASource::rows(hidden, rows, f), b, &Destination::new(out, d), &gated);
            })
        });
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    /// Writes the normed `x`, shifted and scaled by parts `part` and `part + 1` of the modulation, to `out`.
    fn norm<T: Packable>(&self, x: &[T], weight: &[T], modulation: &[T], part: usize, out: &mut [T]) {
        let d = weight.len();
        let columns = self.columns.columns(part * d, 2 * d);
        norm::Inputs { x, weight, shift_scale: modulation, modulation: columns, eps: self.eps }
            .forward_into(out);
    }

    /// The epilogue that gates by part `part` of the modulation.
    fn gate<'a, T>(
        &self,
        x: &'a [T],
        modulation: &'a [T],
        part: usize,
        bias: Option<&'a [f32]>,
    ) -> GatedResidual<'a, T> {
        let d = self.weights.gate.sizes().0;
        GatedResidual { x, gate: modulation, columns: self.columns.columns(part * d, d), bias }
    }
}

/// `x + gate * (sums + bias)`.
struct GatedResidual<'a, T> {
    x: &'a [T],
    gate: &'a [T],
    /// Those of the gate.
    columns: Modulation,
    bias: Option<&'a [f32]>,
}

impl<T: Element> Epilogue for GatedResidual<'_, T> {
    #[inline(always)]
    fn prefetch(&self, place: &Place) {
        let width = self.columns.width();
        for row in place.rows.clone() {
            prefetch_row(self.x, row * width + place.col);
            prefetch_row(self.gate, self.columns.at(self.columns.source(row)) + place.col);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, row: usize, col: usize, cols: usize, sums: &mut TileRow) {
        let bias = self.bias.map_or([0.0; _], |bias| widened(bias, col, cols));
        let gate = widened(self.gate, self.columns.at(self.columns.source(row)) + col, cols);
        let x = widened(self.x, row * self.columns.width() + col, cols);
        update(
            simd,
            [sums],
            [&gate, &x, &bias],
            #[inline(always)]
            |[y], [gate, x, bias]| [simd.mul_add_e_f32s(gate, simd.add_f32s(y, bias), x)],
        );
    }
}
