//! From kinds of steps to operations.

use ddt_flow::CfgBatch;

use super::{
    batch::Programs,
    buffer::{BufferId, Span},
    op::{GemmShape, Modulation, Norm, NormKind, Op},
};
use crate::{
    step_kind::StepKind,
    weights::{Block, Linear, TIMESTEP_FREQUENCIES, WeightId, padded_mlp_size},
};

/// The operations of a step of this kind.
pub(super) fn step(programs: &Programs, kind: StepKind) -> Vec<Op> {
    let mut it = Builder { of: programs, ops: Vec::new() };
    let rows = programs.rows(kind.encode().unwrap_or(kind.decode())); // the encoder never has fewer
    let latents = it.whole(programs.ids.latents);
    let out = it.matrix(programs.ids.patches, rows * programs.tokens(), programs.cfg.patch_dim());
    it.ops.push(Op::Patchify { latents, out });
    if let Some(rows) = kind.encode() {
        it.encode(rows);
    }
    it.decode(kind.decode());
    it.ops
}

struct Builder<'a> {
    of: &'a Programs,
    ops: Vec<Op>,
}

/// Modulation of one block: six parts of D elements per row.
#[derive(Clone, Copy)]
struct BlockModulation(Modulation);

impl BlockModulation {
    /// `count` of the six parts, from `first`.
    fn parts(self, first: usize, count: usize) -> Modulation {
        let Self(whole) = self;
        let d = whole.width / 6;
        Modulation { start: whole.start + first * d, width: count * d, ..whole }
    }

    fn shift_scale_1(self) -> Modulation {
        self.parts(0, 2)
    }

    fn gate_1(self) -> Modulation {
        self.parts(2, 1)
    }

    fn shift_scale_2(self) -> Modulation {
        self.parts(3, 2)
    }

    fn gate_2(self) -> Modulation {
        self.parts(5, 1)
    }
}

impl Builder<'_> {
    fn whole(&self, buffer: BufferId) -> Span {
        self.of.whole(buffer)
    }

    /// `rows` rows of `width` elements from the buffer's start.
    fn matrix(&self, buffer: BufferId, rows: usize, width: usize) -> Span {
        buffer.span(0, rows * width)
    }

    fn hidden(&self) -> usize {
        self.of.cfg.hidden_size
    }

    fn gemm(&mut self, input: Span, (weight, bias): (WeightId, Option<WeightId>), out: Span) {
        let it = &self.of.weights.all()[weight.index()];
        let (n, k) = (it.rows(), it.columns());
        let shape = GemmShape { m: input.len / k, n, k };
        self.ops.push(Op::Gemm { input, weight, bias, out, shape });
    }

    fn linear(&mut self, input: Span, Linear { weight, bias }: Linear, out: Span) {
        self.gemm(input, (weight, Some(bias)), out);
    }

    /// Embeds the patches as tokens.
    fn embed(&mut self, rows: CfgBatch, linear: Linear) {
        let (ids, tokens) = (&self.of.ids, self.of.rows(rows) * self.of.tokens());
        let patches = self.matrix(ids.patches, tokens, self.of.cfg.patch_dim());
        self.linear(patches, linear, self.matrix(ids.xs, tokens, self.hidden()));
    }

    /// Leaves the decoder's modulations of these rows.
    fn encode(&mut self, rows: CfgBatch) {
        let (ids, weights, d) = (&self.of.ids, &self.of.weights, self.hidden());
        let (r, l) = (self.of.rows(rows), self.of.tokens());
        let time = self.time();
        if let Some(modulations) = weights.encoder_modulations {
            let (labels, condition) = (self.matrix(ids.labels, r, 1), self.matrix(ids.condition, r, d));
            self.ops.push(Op::ClassCondition { table: weights.labels, labels, time, out: condition });
            let width = weights.encoder.len() * 6 * d;
            self.linear(condition, modulations, self.matrix(ids.encoder_modulations, r, width));
        }
        self.embed(rows, weights.s_embed);
        let stride = weights.encoder.len() * 6 * d;
        let modulation = |i: usize| {
            let (buffer, start) = (ids.encoder_modulations, i * 6 * d);
            BlockModulation(Modulation { buffer, start, stride, width: 6 * d, rows: r, tokens_per_row: l })
        };
        let modulations: Vec<_> = (0..weights.encoder.len()).map(modulation).collect();
        self.trunk(r, &weights.encoder, &modulations, None);

        // The self-condition takes the place of what the last layer read.
        let (xs, state) = (self.matrix(ids.xs, r * l, d), self.matrix(ids.normed, r * l, d));
        self.ops.push(Op::AddSilu { xs, addend: time, out: state });
        for (&linear, &buffer) in weights.decoder_modulations.iter().zip(&ids.decoder_modulations) {
            self.linear(state, linear, self.matrix(buffer, r * l, 6 * d));
        }
        self.linear(state, weights.final_modulation, self.matrix(ids.final_modulation, r * l, 2 * d));
    }

    /// The step's time as a vector, (1, D), the same for every row.
    fn time(&mut self) -> Span {
        let ids = &self.of.ids;
        let (waves, hidden, time) =
            (self.whole(ids.waves), self.whole(ids.time_hidden), self.whole(ids.time));
        debug_assert_eq!(waves.len, TIMESTEP_FREQUENCIES);
        let [first, second] = self.of.weights.time;
        self.ops.push(Op::TimeWaves { scalars: self.whole(ids.scalars), out: waves });
        self.linear(waves, first, hidden);
        self.ops.push(Op::Silu { xs: hidden, out: hidden });
        self.linear(hidden, second, time);
        time
    }

    /// From kept modulations to the next latents.
    fn decode(&mut self, rows: CfgBatch) {
        let (ids, weights, d) = (&self.of.ids, &self.of.weights, self.hidden());
        let (r, l) = (self.of.rows(rows), self.of.tokens());
        self.embed(rows, weights.x_embed);
        let row = |buffer: BufferId, width: usize| Modulation {
            buffer,
            start: 0,
            stride: width,
            width,
            rows: r * l,
            tokens_per_row: 1,
        };
        let modulations: Vec<_> =
            ids.decoder_modulations.iter().map(|&it| BlockModulation(row(it, 6 * d))).collect();
        let out = self.matrix(ids.normed, r * l, d);
        let last = Norm { kind: NormKind::Layer, shift_scale: row(ids.final_modulation, 2 * d), out };
        self.trunk(r, &weights.decoder, &modulations, Some(last));
        let velocity = self.matrix(ids.velocity, r * l, self.of.cfg.patch_dim());
        self.linear(out, weights.final_linear, velocity);
        let (scalars, latents) = (self.whole(ids.scalars), self.whole(ids.latents));
        self.ops.push(Op::Euler { velocity, scalars, latents, guided: rows == CfgBatch::CondUncond });
    }

    /// Blocks on the tokens in `xs`; every norm but the first is done together with the addition before it.
    fn trunk(&mut self, r: usize, blocks: &[Block], modulations: &[BlockModulation], last: Option<Norm>) {
        let (ids, d) = (&self.of.ids, self.hidden());
        let (t, f) = (r * self.of.tokens(), padded_mlp_size(d));
        let xs = self.matrix(ids.xs, t, d);
        let normed = self.matrix(ids.normed, t, d);
        let (qkv, attended) = (self.matrix(ids.qkv, t, 3 * d), self.matrix(ids.attended, t, d));
        let (ys, gate_up) = (self.matrix(ids.ys, t, d), self.matrix(ids.gate_up, t, 2 * f));
        let gated = self.matrix(ids.gated, t, f);
        let rms = |weight, shift_scale| Norm { kind: NormKind::Rms(weight), shift_scale, out: normed };
        let first_of = |i: usize| {
            let (block, modulation): (&Block, _) = (blocks.get(i)?, modulations.get(i)?);
            Some(rms(block.norm1, modulation.shift_scale_1()))
        };
        if let Some(norm) = first_of(0).or(last) {
            self.ops.push(Op::Norm { xs, norm });
        }
        for (i, (block, &modulation)) in blocks.iter().zip(modulations).enumerate() {
            self.gemm(normed, (block.qkv, None), qkv);
            let (q_norm, k_norm, rope) = (block.q_norm, block.k_norm, self.whole(ids.rope));
            self.ops.push(Op::Attention { qkv, q_norm, k_norm, rope, out: attended });
            self.linear(attended, block.proj, ys);
            let norm = Some(rms(block.norm2, modulation.shift_scale_2()));
            self.ops.push(Op::Residual { xs, ys, gate: modulation.gate_1(), norm });
            self.gemm(normed, (block.w13, None), gate_up);
            self.ops.push(Op::SwiGlu { xs: gate_up, out: gated });
            self.gemm(gated, (block.w2, None), ys);
            let norm = first_of(i + 1).or(last);
            self.ops.push(Op::Residual { xs, ys, gate: modulation.gate_2(), norm });
        }
    }
}
