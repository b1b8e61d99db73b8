//! [`crate::packed_block`]: a block's operations in a row, on buffers that are kept.

use pulp::c32;

use super::attention;
use super::element::Element;
use super::gate_residual::Plan;
use super::gemm::{Factor, GatedSum, Left, Packed, Store, SwiGlu, collect, run};
use super::rms_norm_modulate as norm;
use super::rows::Rows;
use super::scratch::Scratch;
use crate::modulation::{Columns, Modulation};

/// What the block reads; all slices are contiguous.
pub(crate) struct Inputs<'a, T: Factor> {
    /// (B, L, D).
    pub(crate) x: &'a [T],
    /// (B, 1 or L, W).
    pub(crate) modulation: &'a [T],
    /// W, and the first of the block's columns: shift, scale and gate of the attention, then of the MLP.
    pub(crate) columns: (usize, usize),
    pub(crate) kind: Modulation,
    pub(crate) norms: [&'a [T]; 2],
    pub(crate) qk_norms: (&'a [T], &'a [T]),
    pub(crate) qkv: &'a Packed<T>,
    pub(crate) proj: (&'a Packed<T>, Option<&'a [f32]>),
    pub(crate) gate: &'a Packed<T>,
    pub(crate) w2: (&'a Packed<T>, Option<&'a [f32]>),
    /// D and F.
    pub(crate) hidden: (usize, usize),
    pub(crate) turns: &'a [c32],
    pub(crate) sizes: attention::Sizes,
    pub(crate) eps: f32,
}

/// The attention's half of a block, or the MLP's: which norm, and where in the modulation.
#[derive(Debug, Clone, Copy)]
enum Half {
    Attention,
    Mlp,
}

impl<T: Factor + Element> Inputs<'_, T> {
    fn rows(&self) -> Rows {
        Rows::new(self.sizes.batch, self.sizes.tokens)
    }

    fn columns(&self, part: usize) -> Columns {
        let (row, first) = self.columns;
        Columns { row, first: first + part * self.hidden.0 }
    }

    /// Writes what a half reads.
    fn norm(&self, half: Half, x: &[T], out: &mut [T]) {
        let inputs = norm::Inputs {
            x,
            weight: self.norms[half as usize],
            shift_scale: self.modulation,
            columns: self.columns(3 * half as usize),
            modulation: self.kind,
            rows: self.rows(),
            eps: self.eps,
        };
        norm::forward_into(&inputs, out);
    }

    /// How a half's result joins.
    fn gate(&self, half: Half) -> Plan {
        let columns = self.columns(3 * half as usize + 2);
        Plan { width: self.hidden.0, columns, modulation: self.kind, rows: self.rows() }
    }
}

/// The result, (B, L, D).
pub(crate) fn forward<T: Factor + Element>(inputs: &Inputs<'_, T>) -> Vec<T> {
    let Inputs { x, modulation, sizes, hidden: (d, f), .. } = *inputs;
    let rows = sizes.batch * sizes.tokens;
    let mut narrow = Scratch::take(rows * d);
    let mut wide = Scratch::take(rows * f.max(3 * d));
    let mut middle = Scratch::take(rows * d);

    inputs.norm(Half::Attention, x, &mut narrow);
    let qkv = &mut wide[..rows * 3 * d];
    run(Left::rows(&narrow, rows, d), inputs.qkv, &Store::over(qkv, 3 * d));
    let attention = attention::Inputs::new(qkv, inputs.qk_norms, inputs.turns, sizes, inputs.eps);
    attention::forward_into(&attention, &mut narrow);
    let (weight, bias) = inputs.proj;
    let plan = inputs.gate(Half::Attention);
    run(Left::rows(&narrow, rows, d), weight, &GatedSum::over(&mut middle, &plan, (x, modulation), bias));

    inputs.norm(Half::Mlp, &middle, &mut narrow);
    let gated = &mut wide[..rows * f];
    run(Left::rows(&narrow, rows, d), inputs.gate, &SwiGlu::over(gated, f));
    let (weight, bias) = inputs.w2;
    let plan = inputs.gate(Half::Mlp);
    collect(rows * d, |out| {
        run(Left::rows(gated, rows, f), weight, &GatedSum::new(out, &plan, (&middle, modulation), bias));
    })
}
