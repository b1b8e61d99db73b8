//! For tests: random tensors, and blocks written in plain, differentiable candle operations.

use candle_core::{D, DType, Device, Error, Result, Shape, Tensor, Var};

use crate::packed_block::PackedBlockWeights;
use crate::packed_linear::PackedLinear;
use crate::packed_swiglu::PackedSwiGlu;
use crate::plain;
pub(crate) use crate::plain::{modulate as plain_modulate, silu as plain_silu};
use crate::rope::RopeTable;

pub(crate) const EPS: f64 = 1e-6;

/// Sizes (B, L, D) for operations on rows: tasks of several images, of one, and of a part of one. At least three columns:
/// with fewer, normalising leaves next to no gradient but rounding.
pub(crate) const ROWS: [(usize, usize, usize); 6] =
    [(3, 16, 64), (2, 1, 24), (2, 130, 33), (5, 7, 3), (70, 3, 16), (1, 64, 257)];
/// Sizes (B, L, D) of empty tensors.
pub(crate) const EMPTY: [(usize, usize, usize); 4] = [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)];

/// Numbers in about [-2, 2), the same for the same `seed` everywhere.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A sine about `offset`.
pub(crate) fn filled(shape: impl Into<Shape>, offset: f32) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|i| (i as f32 * 0.7).sin() + offset).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result of `f` and its gradients for a fixed, uneven weighting of the result.
pub(crate) fn run(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = f(&tensors)?;
    let weights = random(99, out.dims())?.to_dtype(DType::BF16)?.to_dtype(out.dtype())?;
    let grads = (&out * weights)?.sum_all()?.backward()?;
    let gradient = |x| grads.get(x).cloned().ok_or_else(|| Error::msg("an input without a gradient"));
    let grads = tensors.iter().map(gradient).collect::<Result<Vec<_>>>()?;
    Ok((out, grads))
}

/// Root mean square error of `got` relative to that of `want`.
pub(crate) fn error(got: &Tensor, want: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (got.to_dtype(DType::F64)?, want.to_dtype(DType::F64)?);
    let rms = |x: &Tensor| x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f64>();
    Ok(rms(&(got - &want)?)? / rms(&want)?.max(1e-30))
}

/// Fails unless `fused`, in f32, bf16 and f16, gives what `plain` gives in f64 for the same inputs, and the same bits
/// on any number of threads.
///
/// f32 is allowed its rounding over the longest sums here; the half types the rounding of one result, half
/// a unit in the last place of 8 and 11 bits, because everything between is f32.
pub(crate) fn check(
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    check_in(&[(DType::F32, 1e-5), (DType::BF16, 4e-3), (DType::F16, 5e-4)], inputs, fused, plain)
}

/// [`check`] with other dtypes and tolerances.
pub(crate) fn check_in(
    dtypes: &[(DType, f64)],
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    check_weighted(dtypes, inputs.len(), inputs, fused, plain)
}

/// [`check_in`], where all inputs but the first `rounded` are weights in f32.
pub(crate) fn check_weighted(
    dtypes: &[(DType, f64)],
    rounded: usize,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for &(dtype, tolerance) in dtypes {
        let dtype_of = |i: usize| if i < rounded { dtype } else { DType::F32 };
        let rounded = inputs.iter().enumerate().map(|(i, x)| x.to_dtype(dtype_of(i)));
        let rounded = rounded.collect::<Result<Vec<_>>>()?;
        let exact = rounded.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
        let (out, grads) = run(&rounded, &fused)?;
        for threads in [1, 5] {
            let (again, grads_again) = on_threads(threads, || run(&rounded, &fused))?;
            assert!(bits(&again)? == bits(&out)?, "{dtype:?} on {threads} threads");
            for (again, grad) in grads_again.iter().zip(&grads) {
                assert!(bits(again)? == bits(grad)?, "{dtype:?} gradient on {threads} threads");
            }
        }
        let (want, want_grads) = run(&exact, &plain)?;
        assert_eq!(out.dtype(), dtype);
        let found = error(&out, &want)?;
        assert!(found < tolerance, "{dtype:?} result: error {found:e}");
        for (i, (grad, want)) in grads.iter().zip(&want_grads).enumerate() {
            assert_eq!(grad.dtype(), dtype_of(i));
            let found = error(grad, want)?;
            assert!(found < tolerance, "{dtype:?} gradient of input {i}: error {found:e}");
        }
    }
    Ok(())
}

/// The result of `f` on a pool of so many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::wrap)?.install(f)
}

/// The bits of a tensor, widened to f32.
pub(crate) fn bits(x: &Tensor) -> Result<Vec<u32>> {
    let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// Fails unless `result` is an error whose message contains `part`.
pub(crate) fn refused(result: Result<Tensor>, part: &str) {
    let message = result.map_or_else(|error| error.to_string(), |_| "no error".to_owned());
    assert!(message.contains(part), "expected {part:?} in {message:?}");
}

pub(crate) fn zeros(shape: &[usize]) -> Result<Tensor> {
    Tensor::full(0f32, shape, &Device::Cpu)
}

pub(crate) fn plain_rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    plain::rms_norm(x, weight, EPS)
}

pub(crate) fn plain_layer_norm(x: &Tensor) -> Result<Tensor> {
    plain::layer_norm(x, EPS)
}

/// `x weight^T`.
pub(crate) fn plain_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.broadcast_matmul(&weight.t()?.contiguous()?)
}

/// A table of random angles.
pub(crate) fn rope(l: usize, k: usize) -> Result<RopeTable> {
    let angles = random(7, &[l, k / 2])?;
    RopeTable::new(angles.cos()?, angles.sin()?)
}

pub(crate) fn plain_attention(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    rope: &RopeTable,
    n: usize,
) -> Result<Tensor> {
    attention_in(qkv.dtype(), qkv, Some([q_weight, k_weight]), rope, n)
}

/// [`plain_attention`] with the operands of both matmuls rounded to `dtype`, and without norms if there are no weights.
pub(crate) fn attention_in(
    dtype: DType,
    qkv: &Tensor,
    weights: Option<[&Tensor; 2]>,
    rope: &RopeTable,
    n: usize,
) -> Result<Tensor> {
    let rounded = |x: &Tensor| x.to_dtype(dtype)?.to_dtype(qkv.dtype());
    plain::attention(qkv, weights.map(|it| (it, EPS)), rope, n, rounded)
}

/// Input, modulation (one row for `rows` tokens each), and weights in the order of [`BlockWeights`](crate::BlockWeights).
pub(crate) fn block_inputs(
    [b, l]: [usize; 2],
    [n, k]: [usize; 2],
    f: usize,
    rows: usize,
) -> Result<Vec<Tensor>> {
    let d = n * k;
    let shapes: [&[usize]; 12] = [
        &[b, l, d],
        &[b, rows, 6 * d],
        &[d],
        &[3 * d, d],
        &[k],
        &[k],
        &[d, d],
        &[d],
        &[d],
        &[f, d],
        &[d, f],
        &[f, d],
    ];
    // Products of about unit size, so that no half drowns the other.
    let scaled = |(seed, shape): (usize, &&[usize])| {
        let scale = if shape.len() == 2 { (shape[1] as f64).sqrt().recip() } else { 1.0 };
        random(seed as u64, shape)? * scale
    };
    shapes.iter().enumerate().map(scaled).collect()
}

/// `value`, with the gradient of `x`.
fn with_value(x: &Tensor, value: Tensor) -> Result<Tensor> {
    x + (value.detach() - x.detach())?
}

pub(crate) fn plain_block(x: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
    block_in(x[0].dtype(), x, rope, n)
}

/// [`plain_block`] with the result of each operation and its gradient rounded to `dtype`, as well as the weights that
/// a GEMM reads and the operands of the attention's forward pass. After [`block_inputs`] there may be biases of `qkv`,
/// `w1`, `w2` and `w3`.
pub(crate) fn block_in(dtype: DType, x: &[Tensor], rope: &RopeTable, n: usize) -> Result<Tensor> {
    let d = x[0].dim(D::Minus1)?;
    let part = |first, count| x[1].narrow(D::Minus1, first * d, count * d);
    let rounded = |y: Tensor| y.to_dtype(dtype)?.to_dtype(x[0].dtype());
    let linear =
        |y: &Tensor, weight: &Tensor| plain_linear(y, &with_value(weight, rounded(weight.detach())?)?);
    let biased = |y: Tensor, at: usize| x.get(at).map_or(Ok(y.clone()), |bias| y.broadcast_add(bias));
    let attention = |qkv: &Tensor| {
        let weights = Some([&x[4], &x[5]]);
        let exact = attention_in(qkv.dtype(), qkv, weights, rope, n)?;
        with_value(&exact, attention_in(dtype, qkv, weights, rope, n)?)
    };
    let y = rounded(plain_modulate(&plain_rms_norm(&x[0], &x[2])?, &part(0, 2)?)?)?;
    let heads = rounded(attention(&rounded(biased(linear(&y, &x[3])?, 12)?)?)?)?;
    let y = rounded(linear(&heads, &x[6])?.broadcast_add(&x[7])?)?;
    let middle = rounded((&x[0] + y.broadcast_mul(&part(2, 1)?)?)?)?;
    let y = rounded(plain_modulate(&plain_rms_norm(&middle, &x[8])?, &part(3, 2)?)?)?;
    let (a, b) = (rounded(biased(linear(&y, &x[9])?, 13)?)?, rounded(biased(linear(&y, &x[11])?, 15)?)?);
    let y = rounded(biased(linear(&rounded((plain_silu(&a)? * b)?)?, &x[10])?, 14)?)?;
    rounded((&middle + y.broadcast_mul(&part(5, 1)?)?)?)
}

/// Input, condition (one row for `rows` tokens each), and weights in the order of [`BlockWeights`](crate::BlockWeights).
pub(crate) fn block_inputs_of_condition(
    [b, l]: [usize; 2],
    [n, k]: [usize; 2],
    f: usize,
    rows: usize,
) -> Result<Vec<Tensor>> {
    let d = n * k;
    let mut inputs = block_inputs([b, l], [n, k], f, rows)?;
    let ada_ln_weight = (random(12, &[6 * d, d])? * (d as f64).sqrt().recip())?;
    inputs.splice(1..2, [random(1, &[b, rows, d])?, ada_ln_weight, random(13, &[6 * d])?]);
    Ok(inputs)
}

/// [`block_in`] under a condition.
pub(crate) fn block_of_condition_in(
    dtype: DType,
    x: &[Tensor],
    rope: &RopeTable,
    n: usize,
) -> Result<Tensor> {
    let rounded = |y: &Tensor| y.to_dtype(dtype)?.to_dtype(x[0].dtype());
    let weight = with_value(&x[2], rounded(&x[2].detach())?)?;
    let modulation = rounded(&plain_linear(&rounded(&x[1])?, &weight)?.broadcast_add(&x[3])?)?;
    let inputs: Vec<Tensor> =
        [rounded(&x[0])?, modulation].into_iter().chain(x[4..].iter().cloned()).collect();
    block_in(dtype, &inputs, rope, n)
}

/// Packed weights of a block, from [`block_inputs`].
pub(crate) fn packed_weights(x: &[Tensor]) -> Result<PackedBlockWeights> {
    Ok(PackedBlockWeights {
        norm1: x[2].clone(),
        qkv: PackedLinear::new(&x[3], None)?,
        qk_norm: Some([x[4].clone(), x[5].clone()]),
        proj: PackedLinear::new(&x[6], Some(&x[7]))?,
        norm2: x[8].clone(),
        gate: PackedSwiGlu::new(&x[9], &x[11])?,
        w2: PackedLinear::new(&x[10], None)?,
    })
}
