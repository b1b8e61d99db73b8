//! Layers and blocks whose weights are packed.

use candle_core::{DType, Result, Tensor, Var};
use ddt_kernels::{
    ModulationSource, PackedBlockWeights, PackedLinear, PackedSwiGlu, RopeTable, packed_block,
};

use crate::attention;
use crate::block::{EPS, inputs, plain};
use crate::support::{check_in, error, plain_silu, random};

/// Rounding of f32 sums; of bf16 between the products of a block.
const DTYPES: [(DType, f64); 2] = [(DType::F32, 2e-5), (DType::BF16, 1.5e-2)];

fn rounded(tensors: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    tensors.iter().map(|x| x.to_dtype(dtype)).collect()
}

/// Weights from tensors in the order of `block::inputs`.
pub(crate) fn packed(x: &[Tensor]) -> Result<PackedBlockWeights> {
    Ok(PackedBlockWeights {
        norm1: x[2].clone(),
        qkv: PackedLinear::new(&x[3], None)?,
        q_norm: x[4].clone(),
        k_norm: x[5].clone(),
        proj: PackedLinear::new(&x[6], Some(&x[7]))?,
        norm2: x[8].clone(),
        gate: PackedSwiGlu::new(&x[9], &x[11])?,
        w2: PackedLinear::new(&x[10], None)?,
    })
}

#[test]
fn blocks_match_for_rows_of_modulation_per_image_and_per_token() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        for ((b, l), (n, k), f) in [((2, 16), (2, 16), 85), ((1, 70), (1, 8), 20), ((3, 1), (2, 4), 6)] {
            let (rope, d) = (attention::rope(l, k)?, n * k);
            for rows in [1, l] {
                let x = rounded(&inputs((b, l), (n, k), f, rows)?, dtype)?;
                let want = plain(&rounded(&x, DType::F64)?, &rope, n)?;
                let got = packed_block(&x[0], &x[1], &packed(&x)?, &rope, n, EPS)?;
                let found = error(&got, &want)?;
                assert!(found < tolerance, "{dtype:?}, {rows} rows: error {found:e}");
                // The same columns among others.
                let other = random(50, &[b, rows, 3 * d])?.to_dtype(dtype)?;
                let wide = Tensor::cat(&[&other, &x[1], &other], 2)?;
                let columns = ModulationSource::from(&wide).from_column(3 * d);
                let again = packed_block(&x[0], columns, &packed(&x)?, &rope, n, EPS)?;
                assert_eq!(error(&again, &got)?, 0.0);
            }
        }
    }
    Ok(())
}

#[test]
fn bits_of_a_block_do_not_depend_on_threads_or_on_what_ran_before() -> Result<()> {
    let rope = attention::rope(70, 8)?;
    for dtype in [DType::F32, DType::BF16] {
        let x = rounded(&inputs((3, 70), (2, 8), 45, 1)?, dtype)?;
        let weights = packed(&x)?;
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let out = pool
                .map_err(candle_core::Error::wrap)?
                .install(|| packed_block(&x[0], &x[1], &weights, &rope, 2, EPS))?;
            out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
        };
        let one = bits(1)?;
        // Buffers come back with what others left in them.
        let poison = (&x[0] * f64::NAN)?;
        packed_block(&poison, &x[1], &weights, &rope, 2, EPS)?;
        assert!(one == bits(2)? && one == bits(5)? && one == bits(1)?);
    }
    Ok(())
}

#[test]
fn a_gated_layer_matches_gives_its_weights_back_and_passes_gradients_on() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 4e-3)] {
        for (rows, d, f) in [(1, 1, 1), (3, 33, 70), (20, 600, 32), (15, 8, 17), (0, 4, 3)] {
            let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
            let (x, w1, w3) = (new(1, &[1, rows, d])?, new(2, &[f, d])?, new(3, &[f, d])?);
            let (w1, w3) = ((w1 * 0.3)?, (w3 * 0.3)?);
            let gate = PackedSwiGlu::new(&w1, &w3)?;
            let got = gate.forward(&x)?;
            assert_eq!((got.dtype(), got.dims()), (dtype, &[1, rows, f][..]));
            let exact = |x: &Tensor| x.to_dtype(DType::F64);
            let product = |w: &Tensor| exact(&x)?.broadcast_matmul(&exact(w)?.t()?.contiguous()?);
            if rows > 0 {
                let found = error(&got, &(plain_silu(&product(&w1)?)? * product(&w3)?)?)?;
                assert!(found < tolerance, "{dtype:?} {rows} x {d} x {f}: error {found:e}");
            }
            for (back, weight) in gate.weights()?.iter().zip([&w1, &w3]) {
                assert_eq!(error(back, weight)?, 0.0);
            }
        }
    }
    let (w1, w3) = (random(2, &[5, 4])?, random(3, &[5, 4])?);
    let gate = PackedSwiGlu::new(&w1, &w3)?;
    check_in(
        &[(DType::F32, 1e-5)],
        &[random(1, &[2, 3, 4])?],
        |x| gate.forward(&x[0]),
        |x| {
            let product = |w: &Tensor| x[0].broadcast_matmul(&w.to_dtype(x[0].dtype())?.t()?.contiguous()?);
            plain_silu(&product(&w1)?)? * product(&w3)?
        },
    )
}

#[test]
fn joined_layers_are_one_and_stay_what_they_were() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let new = |seed, shape: &[usize]| random(seed, shape)?.to_dtype(dtype);
        let layer =
            |seed, outputs| PackedLinear::new(&new(seed, &[outputs, 24])?, Some(&new(seed + 9, &[outputs])?));
        let layers = vec![layer(1, 64)?, layer(2, 32)?, layer(3, 96)?];
        let x = new(5, &[3, 24])?;
        let want = layers.iter().map(|it| it.forward(&x)).collect::<Result<Vec<_>>>()?;
        let (all, parts) = PackedLinear::joined(layers).unwrap();
        assert_eq!(error(&all.forward(&x)?, &Tensor::cat(&want, 1)?)?, 0.0);
        for (part, want) in parts.iter().zip(&want) {
            assert_eq!(error(&part.forward(&x)?, want)?, 0.0);
            assert_eq!(part.weight()?.dims(), [want.dim(1)?, 24]);
        }
        // A width that leaves a gap, another number of inputs, a bias too few: the layers come back.
        let bare = PackedLinear::new(&new(1, &[64, 24])?, None)?;
        let narrow = PackedLinear::new(&new(1, &[64, 23])?, Some(&new(2, &[64])?))?;
        for odd in [layer(4, 33)?, narrow, bare] {
            assert_eq!(PackedLinear::joined(vec![layer(1, 64)?, odd]).unwrap_err().len(), 2);
        }
        assert!(PackedLinear::joined(Vec::new()).is_err());
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let rope = attention::rope(4, 8)?;
    let good = inputs((1, 4), (1, 8), 24, 1)?;
    let refused = |x: &[Tensor], first: usize, rope: &RopeTable, part: &str| {
        let run = |x: &[Tensor]| {
            let columns = ModulationSource::from(&x[1]).from_column(first);
            packed_block(&x[0], columns, &packed(x)?, rope, 1, EPS)
        };
        let message = run(x).map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        assert!(message.contains(part), "expected {part:?} in {message:?}");
    };
    let with = |at: usize, tensor: Tensor| {
        let mut bad = good.clone();
        bad[at] = tensor;
        bad
    };
    refused(&with(0, random(1, &[4, 8])?), 0, &rope, "expected x of shape (B, L, D)");
    refused(
        &with(1, random(1, &[1, 2, 48])?),
        0,
        &rope,
        "expected modulation of shape (1, 1, 48) or (1, 4, 48)",
    );
    refused(&good, 1, &rope, "expected modulation with 48 columns from column 1 on, got [1, 1, 48]");
    refused(&good, usize::MAX, &rope, "expected modulation with 48 columns");
    refused(&good, 0, &attention::rope(5, 8)?, "got a rope table of head size 8 and 5 tokens");
    refused(&with(10, random(1, &[8, 23])?), 0, &rope, "expected w2 from and to (24, 8)");
    refused(&with(8, random(1, &[7])?), 0, &rope, "expected norm2 of shape [8]");
    refused(&with(0, Var::from_tensor(&good[0])?.as_tensor().clone()), 0, &rope, "depend on no variable");
    let mut mixed = good.clone();
    mixed[..2].clone_from_slice(&rounded(&good[..2], DType::BF16)?);
    refused(&mixed, 0, &rope, "expected norm1 in the dtype of x");
    assert!(
        PackedSwiGlu::new(&good[9], &good[10])
            .unwrap_err()
            .to_string()
            .contains("expected w3 of shape [24, 8]")
    );
    Ok(())
}
