//! Attention against f64.

use half::bf16;

use super::support::{self, Check, Data, Heads, Random, relative_error, spoilt};
use crate::cuda::attention::Tiling;
use crate::cuda::{Attention, Cuda, Float, Result, Slice};

/// Queries, keys and weights are rounded to bf16 before they are multiplied, and so is the result.
const BF16_TOLERANCE: f64 = 1e-2;

const EPS: f64 = 1e-6;

/// The centre of the norms' weights: with the one, a query follows a few keys; with the other, many, so
/// that a key too many or too few shows.
const SHARP: f32 = 1.5;
const FLAT: f32 = 0.4;

pub(super) fn verify(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    use Tiling::{Small, Standard, Wide};
    let sizes = |rows, tokens, heads, head_dim| Heads { rows, tokens, heads, head_dim };
    // Every head size, with tokens that fill no tile.
    for head_dim in (8..=128).step_by(8) {
        fast(cuda, checks, sizes(1, 44, 2, head_dim), (Standard, SHARP))?;
    }
    for head_dim in [64, 72] {
        // Whole tiles; the 256 tokens of a picture; more than shared memory holds at once, with a rest; one.
        for (tokens, tiling) in
            [(256, Wide), (128, Small), (300, Wide), (1, Small), (97, Wide), (130, Small), (300, Standard)]
        {
            fast(cuda, checks, sizes(1, tokens, 1, head_dim), (tiling, FLAT))?;
        }
        fast(cuda, checks, sizes(3, 17, 2, head_dim), (Wide, SHARP))?;
    }
    fast(cuda, checks, sizes(1, 150, 1, 128), (Standard, FLAT))?;
    if !cuda.is_emulated() {
        // 256 px and 512 px as they are, but for the number of images.
        for tiling in [Wide, Standard, Small] {
            fast(cuda, checks, sizes(2, 256, 16, 72), (tiling, FLAT))?;
            fast(cuda, checks, sizes(1, 1024, 2, 72), (tiling, SHARP))?;
        }
    }
    plain::<f32>(cuda, checks, sizes(2, 40, 2, 72), 1e-5)?;
    plain::<f32>(cuda, checks, sizes(1, 9, 1, 20), 1e-5)?;
    plain::<f32>(cuda, checks, sizes(1, 33, 1, 128), 1e-5)?;
    plain::<bf16>(cuda, checks, sizes(1, 64, 2, 64), 3e-3)
}

struct Inputs<T> {
    qkv: Data<T>,
    q_weight: Data<T>,
    k_weight: Data<T>,
    rope: Slice<f32>,
    exact_rope: Vec<f64>,
    out: Slice<T>,
}

impl<T: Float> Inputs<T> {
    fn new(cuda: &Cuda, sizes: Heads, centre: f32) -> Result<Self> {
        let Heads { rows, tokens, heads, head_dim } = sizes;
        let len = rows * tokens * heads * head_dim;
        let mut random = Random::new((tokens * head_dim) as u64);
        let qkv = random.data(cuda, 3 * len, (0.0, 2.0))?;
        let q_weight = random.data(cuda, head_dim, (centre, centre / 3.0))?;
        let k_weight = random.data(cuda, head_dim, (centre, centre / 3.0))?;
        let angle = |i: usize| (i / (head_dim / 2)) as f32 * 0.37 / (1.0 + (i % (head_dim / 2)) as f32);
        let angles: Vec<f32> = (0..tokens * head_dim / 2).map(angle).collect();
        let pairs: Vec<f32> = angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        Ok(Self {
            qkv,
            q_weight,
            k_weight,
            rope: cuda.upload(&pairs)?,
            exact_rope: pairs.into_iter().map(f64::from).collect(),
            out: spoilt(cuda, len)?,
        })
    }

    fn arguments(&self, sizes: Heads) -> Attention<'_, T> {
        Attention {
            qkv: &self.qkv.device,
            q_weight: &self.q_weight.device,
            k_weight: &self.k_weight.device,
            rope: &self.rope,
            tokens: sizes.tokens,
            heads: sizes.heads,
            eps: EPS as f32,
            out: &self.out,
        }
    }

    fn check(&self, cuda: &Cuda, name: &str, sizes: Heads, tolerance: f64) -> Result<Check> {
        let weights = (&self.q_weight.exact[..], &self.k_weight.exact[..]);
        let want = support::attention(sizes, &self.qkv.exact, weights, &self.exact_rope, EPS);
        let Heads { rows, tokens, heads, head_dim } = sizes;
        Ok(Check {
            name: format!("{name} {}", T::NAME),
            shape: format!("R {rows}, L {tokens}, N {heads}, K {head_dim}"),
            error_rms_relative: relative_error(&cuda.read(&self.out)?, &want),
            tolerance,
        })
    }
}

fn fast(cuda: &Cuda, checks: &mut Vec<Check>, sizes: Heads, (tiling, centre): (Tiling, f32)) -> Result<()> {
    let inputs = Inputs::new(cuda, sizes, centre)?;
    cuda.attention_tiled(&inputs.arguments(sizes), tiling)?;
    checks.push(inputs.check(cuda, &format!("attention {tiling:?}"), sizes, BF16_TOLERANCE)?);
    Ok(())
}

fn plain<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>, sizes: Heads, tolerance: f64) -> Result<()> {
    let inputs = Inputs::<T>::new(cuda, sizes, FLAT)?;
    cuda.attention_plain(&inputs.arguments(sizes))?;
    checks.push(inputs.check(cuda, "attention_plain", sizes, tolerance)?);
    Ok(())
}
