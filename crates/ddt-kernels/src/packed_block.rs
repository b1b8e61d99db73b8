//! A whole transformer block that is not trained.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::check::{check_alike, dims_bld, modulation_of};
use crate::cpu::attention::Sizes;
use crate::cpu::packed_block::{Inputs, forward};
use crate::cpu::storage::{self, with_slices};
use crate::modulation::Modulation;
use crate::packed_linear::{Factors, PackedLinear};
use crate::packed_swiglu::PackedSwiGlu;
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
    /// Of the norm before the attention.
    pub norm1: Tensor,
    /// To queries, keys and values.
    pub qkv: PackedLinear,
    /// Of the queries' norm.
    pub q_norm: Tensor,
    /// Of the keys' norm.
    pub k_norm: Tensor,
    /// From the merged heads.
    pub proj: PackedLinear,
    /// Of the norm before the MLP.
    pub norm2: Tensor,
    /// To the MLP's hidden size.
    pub gate: PackedSwiGlu,
    /// From it.
    pub w2: PackedLinear,
}

/// The block of [`transformer_block`](fn@crate::transformer_block), for weights that are packed.
///
/// What lies between its products stays in buffers that are kept from one call to the next; gates and sums
/// with the residual stream happen as products leave the registers, and are rounded once.
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
    let (head_dim, f) = (rope.head_dim(), gate.sizes().1);
    if num_heads.checked_mul(head_dim) != Some(d) || !head_dim.is_multiple_of(4) || rope.num_tokens() != l {
        bail!(
            "{NAME}: expected {num_heads} heads of a size that is a multiple of 4 and {l} tokens for x of {:?}, \
             got a rope table of head size {head_dim} and {} tokens",
            x.shape(),
            rope.num_tokens()
        );
    }
    let width = modulation.dims().last().copied().unwrap_or(0);
    if first.checked_add(6 * d).is_none_or(|last| last > width) {
        bail!(
            "{NAME}: expected modulation with columns {first} to {first} + 6 x {d}, got {:?}",
            modulation.shape()
        );
    }
    let kind = modulation_of(NAME, ("modulation", modulation), (b, l), width)?;
    for ((name, weight), len) in named.iter().zip([d, head_dim, head_dim, d]) {
        if weight.dims() != [len] {
            bail!("{NAME}: expected {name} of shape ({len}), got {:?}", weight.shape());
        }
    }
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
    let sizes = Sizes { batch: b, tokens: l, heads: num_heads, head_dim };
    let op = Block { weights, kind, first, width, rope, sizes, eps: eps as f32 };
    let (x, modulation) = (x.contiguous()?, modulation.contiguous()?);
    #[expect(clippy::disallowed_methods, reason = "neither depends on a variable, which is checked above")]
    x.apply_op2_no_bwd(&modulation, &op)
}

struct Block<'a> {
    weights: &'a PackedBlockWeights,
    kind: Modulation,
    first: usize,
    width: usize,
    rope: &'a RopeTable,
    sizes: Sizes,
    eps: f32,
}

impl CustomOp2 for Block<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        modulation: &CpuStorage,
        modulation_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let PackedBlockWeights { norm1, qkv, q_norm, k_norm, proj, norm2, gate, w2 } = self.weights;
        macro_rules! run {
            ($t:ty, $factors:path) => {
                match (qkv.factors(), proj.factors(), gate.factors(), w2.factors()) {
                    ($factors(qkv), $factors(proj_weight), $factors(gate), $factors(w2_weight)) => {
                        let x = storage::slice::<$t>(x, x_layout)?;
                        let modulation = storage::slice::<$t>(modulation, modulation_layout)?;
                        let out = with_slices!($t; norm1, q_norm, k_norm, norm2 => forward(&Inputs {
                            x,
                            modulation,
                            columns: (self.width, self.first),
                            kind: self.kind,
                            norms: [norm1, norm2],
                            qk_norms: (q_norm, k_norm),
                            qkv,
                            proj: (proj_weight, proj.bias()),
                            gate,
                            w2: (w2_weight, w2.bias()),
                            hidden: self.weights.gate.sizes(),
                            turns: self.rope.turns(),
                            sizes: self.sizes,
                            eps: self.eps,
                        }));
                        Ok((storage::from_vec(out), x_layout.shape().clone()))
                    }
                    _ => bail!("{NAME}: expected all weights in one dtype"),
                }
            };
        }
        match qkv.factors() {
            Factors::F32(_) => run!(f32, Factors::F32),
            Factors::Bf16(_) => run!(half::bf16, Factors::Bf16),
        }
    }
}
