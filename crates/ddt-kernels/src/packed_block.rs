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
use crate::modulation::{Modulation, ModulationSource, Values};
use crate::op::{check_alike, check_shape, dims_bld, with_slices};
use crate::packed_linear::{Packable, PackedLinear, for_packable};
use crate::packed_swiglu::PackedSwiGlu;
use crate::rms_norm_modulate as norm;
use crate::rope::RopeTable;

const NAME: &str = "packed_block";

/// Weights of a [`packed_block`].
///
/// # Shapes
///
/// `norm1`, `norm2`: (D); `qk_norm`: (K) twice; `qkv`: D to 3 D; `proj`: D to D; `gate`: D to F; `w2`: F to D.
/// DDT's blocks have a `qk_norm` and no bias but that of `proj`; DiT^DH's have no `qk_norm` and all biases.
#[derive(Debug, Clone)]
pub struct PackedBlockWeights {
    /// The norm before the attention.
    pub norm1: Tensor,
    /// To queries, keys and values.
    pub qkv: PackedLinear,
    /// The norms of queries and keys, if any.
    pub qk_norm: Option<[Tensor; 2]>,
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
/// `x`: (B, L, D), in the weights' dtype; `modulation`: (B, 1, 6 D) or (B, L, 6 D), or
/// [such columns](ModulationSource::from_column) of wider rows; `rope`: L tokens of head size K; `num_heads`: N = D / K;
/// result: (B, L, D).
///
/// # Errors
/// If a shape or a dtype is another, if a tensor is not on the CPU, or if `x` or `modulation` depends on a
/// variable.
pub fn packed_block<'a>(
    x: &Tensor,
    modulation: impl Into<ModulationSource<'a>>,
    weights: &PackedBlockWeights,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    by_source(x, modulation.into(), weights, rope, num_heads, eps)
}

/// Not generic, so that callers do not compile the operation again.
fn by_source(
    x: &Tensor,
    source: ModulationSource<'_>,
    weights: &PackedBlockWeights,
    rope: &RopeTable,
    num_heads: usize,
    eps: f64,
) -> Result<Tensor> {
    let (b, l, d) = dims_bld(NAME, x)?;
    let PackedBlockWeights { norm1, qkv, qk_norm, proj, norm2, gate, w2 } = weights;
    let qk_norm = qk_norm.iter().flat_map(|[q, k]| [("q_norm", q), ("k_norm", k)]);
    let named: Vec<_> = [("norm1", norm1), ("norm2", norm2)].into_iter().chain(qk_norm).collect();
    let terms = source.tensors().map(|it| ("modulation", it));
    check_alike(NAME, &[&[("x", x)][..], &terms, &named].concat())?;
    if x.track_op() || source.tensors().iter().any(|it| it.track_op()) {
        bail!("{NAME}: expected x and modulation that depend on no variable");
    }
    let sizes = Sizes::of_block(NAME, x, rope, num_heads)?;
    let columns = Modulation::new(NAME, "modulation", &source, (b, l), 6 * d)?;
    for ((name, weight), len) in named.iter().zip([d, d, sizes.head_dim, sizes.head_dim]) {
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
    let block = Block { weights, columns, rope, sizes, eps: eps as f32 };
    for_packable!(NAME, x.dtype(), Block::run(&block, x, &source))
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
    fn run<T: Packable>(&self, x: &Tensor, source: &ModulationSource<'_>) -> Result<Tensor> {
        let PackedBlockWeights { norm1, qk_norm, norm2, .. } = self.weights;
        let [m0, m1, m2] = source.tensors();
        // Without norms of queries and keys, any other tensors take their places.
        let [q_norm, k_norm] = qk_norm.as_ref().map_or([norm1; 2], |it| it.each_ref());
        let out = with_slices([x, norm1, q_norm, k_norm, norm2, m0, m1, m2], |inputs| {
            let [x, norm1, q_norm, k_norm, norm2, m0, m1, m2] = inputs;
            self.forward::<T>(x, [norm1, norm2], [q_norm, k_norm], source.values([m0, m1, m2]))
        })??;
        Tensor::from_vec(out, x.shape(), &Device::Cpu)
    }

    fn forward<T: Packable>(
        &self,
        x: &[T],
        [norm1, norm2]: [&[T]; 2],
        qk_norms: [&[T]; 2],
        modulation: Values<'_, T>,
    ) -> Result<Vec<T>> {
        let PackedBlockWeights { qkv, qk_norm, proj, gate, w2, .. } = self.weights;
        let (d, f) = gate.sizes();
        let rows = self.columns.count();
        let (mut narrow, mut middle) = (Scratch::take(rows * d), Scratch::take(rows * d));
        let mut wide = Scratch::take(rows * f.max(3 * d));

        self.norm(x, norm1, modulation, 0, &mut narrow);
        let (b, bias) = (qkv.packed().get()?, BiasActivation::<T>::bias(qkv.bias(), 3 * d));
        let heads = &mut wide[..rows * 3 * d];
        gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(heads, 3 * d), &bias);
        let rotations = self.rope.rotations();
        let attention = match qk_norm {
            Some(_) => attention::Inputs::new(heads, qk_norms, rotations, self.sizes, self.eps),
            None => attention::Inputs::rotated(heads, rotations, self.sizes),
        };
        attention::forward_into(&attention, &mut narrow);
        let (b, gated) = (proj.packed().get()?, self.gated(x, modulation, 2, proj.bias()));
        gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(&mut middle, d), &gated);

        self.norm(&middle, norm2, modulation, 3, &mut narrow);
        let (b, hidden) = (gate.packed().get()?, &mut wide[..rows * f]);
        gemm(ASource::rows(&narrow, rows, d), b, &Destination::over(hidden, f), &gate.epilogue());
        let (b, gated) = (w2.packed().get()?, self.gated(&middle, modulation, 5, w2.bias()));
        let a = ASource::rows(hidden, rows, f);
        Ok(collect(rows * d, |out| gemm(a, b, &Destination::new(out, d), &gated)))
    }

    /// Writes the normed `x`, shifted and scaled by parts `part` and `part + 1` of the modulation, to `out`.
    fn norm<T: Packable>(
        &self,
        x: &[T],
        weight: &[T],
        shift_scale: Values<'_, T>,
        part: usize,
        out: &mut [T],
    ) {
        let modulation = self.columns.columns(part * weight.len(), 2 * weight.len());
        norm::Inputs { x, weight, shift_scale, modulation, eps: self.eps }.forward_into(out);
    }

    /// The epilogue that gates by part `part` of the modulation.
    fn gated<'a, T>(
        &self,
        x: &'a [T],
        gate: Values<'a, T>,
        part: usize,
        bias: Option<&'a [f32]>,
    ) -> GatedResidual<'a, T> {
        let d = self.weights.gate.sizes().0;
        GatedResidual { x, gate, columns: self.columns.columns(part * d, d), bias }
    }
}

/// `x + gate * (sums + bias)`.
struct GatedResidual<'a, T> {
    x: &'a [T],
    gate: Values<'a, T>,
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
            self.gate.prefetch(self.columns.at(self.columns.source(row)) + place.col);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, row: usize, col: usize, cols: usize, sums: &mut TileRow) {
        let bias = self.bias.map_or([0.0; _], |bias| widened(bias, col, cols));
        let gate = self.gate.tile_row(simd, self.columns.at(self.columns.source(row)) + col, cols);
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::*;
    use crate::testing::{
        EPS, attention_in, bits, block_inputs, error, on_threads, packed_weights, plain_block, plain_linear,
        plain_modulate, plain_rms_norm, plain_silu, random, refused, rope,
    };

    /// Rounding of f32 sums; of bf16 between the GEMMs of a block.
    const DTYPES: [(DType, f64); 2] = [(DType::F32, 2e-5), (DType::BF16, 1.5e-2)];

    fn rounded(tensors: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
        tensors.iter().map(|x| x.to_dtype(dtype)).collect()
    }

    #[test]
    fn blocks_match_for_rows_of_modulation_per_image_and_per_token() -> Result<()> {
        for (dtype, tolerance) in DTYPES {
            for ((b, l), (n, k), f) in [((2, 16), (2, 16), 85), ((1, 70), (1, 8), 20), ((3, 1), (2, 4), 6)] {
                let (rope, d) = (rope(l, k)?, n * k);
                for rows in [1, l] {
                    let x = rounded(&block_inputs([b, l], [n, k], f, rows)?, dtype)?;
                    let want = plain_block(&rounded(&x, DType::F64)?, &rope, n)?;
                    let got = packed_block(&x[0], &x[1], &packed_weights(&x)?, &rope, n, EPS)?;
                    let found = error(&got, &want)?;
                    assert!(found < tolerance, "{dtype:?}, {rows} rows: error {found:e}");
                    // The same columns among others.
                    let other = random(50, &[b, rows, 3 * d])?.to_dtype(dtype)?;
                    let wide = Tensor::cat(&[&other, &x[1], &other], 2)?;
                    let columns = ModulationSource::from(&wide).from_column(3 * d);
                    let again = packed_block(&x[0], columns, &packed_weights(&x)?, &rope, n, EPS)?;
                    assert_eq!(error(&again, &got)?, 0.0);
                }
            }
        }
        Ok(())
    }

    /// A block without norms of queries and keys, with biases of `qkv`, of both halves of the MLP and of its end.
    fn plain_biased_block(x: &[Tensor], biases: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
        let d = x[2].dim(0)?;
        let part = |first: usize, count: usize| x[1].narrow(2, first * d, count * d);
        let linear =
            |y: &Tensor, weight: usize, bias: &Tensor| plain_linear(y, &x[weight])?.broadcast_add(bias);
        let y = plain_modulate(&plain_rms_norm(&x[0], &x[2])?, &part(0, 2)?)?;
        let heads = attention_in(DType::F64, &linear(&y, 3, &biases[0])?, None, rope, n)?;
        let middle = (&x[0] + linear(&heads, 6, &x[7])?.broadcast_mul(&part(2, 1)?)?)?;
        let y = plain_modulate(&plain_rms_norm(&middle, &x[8])?, &part(3, 2)?)?;
        let gated = (plain_silu(&linear(&y, 9, &biases[1])?)? * linear(&y, 11, &biases[2])?)?;
        &middle + linear(&gated, 10, &biases[3])?.broadcast_mul(&part(5, 1)?)?
    }

    /// DiT^DH's kind of block, which has no norm of queries and keys and has all biases.
    #[test]
    fn blocks_match_without_qk_norm_and_with_all_biases() -> Result<()> {
        let ((b, l), (n, k), f) = ((2, 16), (2, 16), 85);
        let (rope, d) = (rope(l, k)?, n * k);
        for (dtype, tolerance) in DTYPES {
            let x = rounded(&block_inputs([b, l], [n, k], f, l)?, dtype)?;
            let bias = |seed, len: usize| random(seed, &[len])?.to_dtype(dtype);
            let biases = [bias(60, 3 * d)?, bias(61, f)?, bias(62, f)?, bias(63, d)?];
            let exact = rounded(&biases, DType::F64)?;
            let want = plain_biased_block(&rounded(&x, DType::F64)?, &exact, &rope, n)?;
            let weights = PackedBlockWeights {
                qkv: PackedLinear::new(&x[3], Some(&biases[0]))?,
                qk_norm: None,
                gate: PackedSwiGlu::new(&x[9], &x[11])?.with_biases(&biases[1], &biases[2])?,
                w2: PackedLinear::new(&x[10], Some(&biases[3]))?,
                ..packed_weights(&x)?
            };
            let found = error(&packed_block(&x[0], &x[1], &weights, &rope, n, EPS)?, &want)?;
            assert!(found < tolerance, "{dtype:?}: error {found:e}");
        }
        Ok(())
    }

    #[test]
    fn bits_of_a_block_do_not_depend_on_threads_or_on_what_ran_before() -> Result<()> {
        let rope = rope(70, 8)?;
        for dtype in [DType::F32, DType::BF16] {
            let x = rounded(&block_inputs([3, 70], [2, 8], 45, 1)?, dtype)?;
            let weights = packed_weights(&x)?;
            let on =
                |threads| bits(&on_threads(threads, || packed_block(&x[0], &x[1], &weights, &rope, 2, EPS))?);
            let one = on(1)?;
            // Buffers come back with what others left in them.
            let poison = (&x[0] * f64::NAN)?;
            packed_block(&poison, &x[1], &weights, &rope, 2, EPS)?;
            assert!(one == on(2)? && one == on(5)? && one == on(1)?);
        }
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_refused() -> Result<()> {
        let table = rope(4, 8)?;
        let good = block_inputs([1, 4], [1, 8], 24, 1)?;
        let refused = |x: &[Tensor], first: usize, rope: &RopeTable, part: &str| {
            let run = |x: &[Tensor]| {
                let columns = ModulationSource::from(&x[1]).from_column(first);
                packed_block(&x[0], columns, &packed_weights(x)?, rope, 1, EPS)
            };
            refused(run(x), part);
        };
        let with = |at: usize, tensor: Tensor| {
            let mut bad = good.clone();
            bad[at] = tensor;
            bad
        };
        refused(&with(0, random(1, &[4, 8])?), 0, &table, "expected x of shape (B, L, D)");
        refused(
            &with(1, random(1, &[1, 2, 48])?),
            0,
            &table,
            "expected modulation of shape (1, 1, 48) or (1, 4, 48)",
        );
        refused(&good, 1, &table, "expected modulation with 48 columns from column 1 on, got [1, 1, 48]");
        refused(&good, usize::MAX, &table, "expected modulation with 48 columns");
        refused(&good, 0, &rope(5, 8)?, "got a rope table of head size 8 and 5 tokens");
        refused(&with(10, random(1, &[8, 23])?), 0, &table, "expected w2 from and to (24, 8)");
        refused(&with(8, random(1, &[7])?), 0, &table, "expected norm2 of shape [8]");
        refused(
            &with(0, Var::from_tensor(&good[0])?.as_tensor().clone()),
            0,
            &table,
            "depend on no variable",
        );
        let mut mixed = good.clone();
        mixed[..2].clone_from_slice(&rounded(&good[..2], DType::BF16)?);
        refused(&mixed, 0, &table, "expected norm1 in the dtype of x");
        Ok(())
    }
}
