//! The work of the GPU as data: the operations of each kind of step.

use std::ops::RangeInclusive;

use ddt_flow::CfgBatch;
use ddt_model::DdtConfig;

use crate::{
    buffer::{Batch, Buffer, BufferId, Span},
    error::GpuError,
    op::{Forecast, GemmShape, Modulation, Norm, NormKind, Op},
    operands::Operands,
    step_kind::StepKind,
    weights::{Block, Linear, WeightId, WeightTable, padded_mlp_size},
};

/// The programs of a run, one for each kind of step and set of modulations: plain lists of operations on buffers, made
/// without a device.
///
/// A ring of sets holds the decoder's modulations of the last runs of the encoder, `order + 1` sets in all. A step that
/// encodes overwrites the oldest set and reads only that. A step that shares reads every set written so far and weighs
/// it by a scalar of the step. The scalars change from step to step, the program does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Programs {
    pub(crate) operands: Operands,
    /// Programs of a step, by set, then by kind.
    steps: Vec<[Vec<Op>; 5]>,
}

impl Programs {
    /// The programs of a network of these sizes.
    ///
    /// # Errors
    /// [`GpuError::Model`] for sizes that make no network; [`GpuError::Unsupported`] for a batch without images or
    /// with latents that do not divide into patches, and for one whose buffers no GPU could hold.
    pub fn new(cfg: &DdtConfig, batch: Batch) -> Result<Self, GpuError> {
        let operands = Operands::new(cfg, batch)?;
        let of = |set| StepKind::ALL.map(|kind| step(&operands, kind, set));
        let steps = (0..batch.order.points()).map(of).collect();
        Ok(Self { operands, steps })
    }

    /// The network's sizes.
    pub fn config(&self) -> &DdtConfig {
        &self.operands.cfg
    }

    /// Size and precision of a batch, and how its steps share.
    pub fn batch(&self) -> Batch {
        self.operands.batch
    }

    /// The weights, which operations name by position.
    pub fn weights(&self) -> &WeightTable {
        &self.operands.weights
    }

    /// The buffers, which operations name by position.
    pub fn buffers(&self) -> &[Buffer] {
        &self.operands.buffers
    }

    /// The operations of a step of this kind. If it encodes, `set` is the set of modulations that it writes; otherwise
    /// the last of those that it combines, from set 0 on. There are none for a set that the order does not have.
    pub fn step(&self, kind: StepKind, set: usize) -> &[Op] {
        self.steps.get(set).map_or(&[], |it| &it[kind.index()])
    }

    /// All programs: of the kinds in the order of [`StepKind::ALL`], set by set.
    pub fn all(&self) -> impl Iterator<Item = &[Op]> {
        self.steps.iter().flatten().map(Vec::as_slice)
    }
}

/// See [`Programs::step`].
fn step(operands: &Operands, kind: StepKind, set: usize) -> Vec<Op> {
    let mut it = Builder { of: operands, ops: Vec::new() };
    let rows = operands.rows(kind.encode().unwrap_or(kind.decode())); // the encoder never has fewer
    let latents = it.whole(operands.ids.latents);
    let out = it.matrix(operands.ids.patches, rows * operands.tokens(), operands.cfg.patch_dim());
    it.ops.push(Op::Patchify { latents, out });
    if let Some(rows) = kind.encode() {
        it.encode(rows, set);
        it.decode(kind.decode(), set..=set);
    } else {
        it.decode(kind.decode(), 0..=set);
    }
    it.ops
}

struct Builder<'a> {
    of: &'a Operands,
    ops: Vec<Op>,
}

/// Shift and scale, and gate, of a block's attention, then of its MLP: six parts of D elements per row.
fn parts_of(block: Modulation) -> [Modulation; 4] {
    let d = block.width / 6;
    let part = |(first, count)| Modulation { start: block.start + first * d, width: count * d, ..block };
    [(0, 2), (2, 1), (3, 2), (5, 1)].map(part)
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

    fn gemm(&mut self, input: Span, weight: WeightId, bias: Option<WeightId>, out: Span) {
        let it = &self.of.weights.all()[weight.index()];
        let (n, k) = (it.rows(), it.columns());
        let shape = GemmShape { m: input.len / k, n, k };
        self.ops.push(Op::Gemm { input, weight, bias, out, shape });
    }

    fn linear(&mut self, input: Span, Linear { weight, bias }: Linear, out: Span) {
        self.gemm(input, weight, Some(bias), out);
    }

    /// Embeds the patches as tokens.
    fn embed(&mut self, rows: CfgBatch, linear: Linear) {
        let (ids, tokens) = (&self.of.ids, self.of.rows(rows) * self.of.tokens());
        let patches = self.matrix(ids.patches, tokens, self.of.cfg.patch_dim());
        self.linear(patches, linear, self.matrix(ids.xs, tokens, self.hidden()));
    }

    /// Leaves the decoder's modulations of these rows in a set.
    fn encode(&mut self, rows: CfgBatch, set: usize) {
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
            Modulation { buffer, start, stride, width: 6 * d, rows: r, tokens_per_row: l }
        };
        let modulations: Vec<_> = (0..weights.encoder.len()).map(modulation).collect();
        self.trunk(r, &weights.encoder, &modulations, None, None);

        // The self-condition takes the place of what the last layer read.
        let (xs, state) = (self.matrix(ids.xs, r * l, d), self.matrix(ids.normed, r * l, d));
        self.ops.push(Op::AddSilu { xs, addend: Some(time), out: state });
        let sets = &ids.decoder_modulations;
        let last = (weights.final_modulation, 2 * d);
        let layers = weights.decoder_modulations.iter().map(|&linear| (linear, 6 * d)).chain([last]);
        for (i, (linear, width)) in layers.enumerate() {
            self.linear(state, linear, sets.buffer.span(sets.start(set, i), r * l * width));
        }
    }

    /// The step's time as a vector, (1, D), the same for every row.
    fn time(&mut self) -> Span {
        let ids = &self.of.ids;
        let [embedding, hidden, time] =
            [ids.timestep_embedding, ids.time_hidden, ids.time].map(|it| self.whole(it));
        let [first, second] = self.of.weights.time;
        self.ops.push(Op::TimestepEmbedding { scalars: self.whole(ids.scalars), out: embedding });
        self.linear(embedding, first, hidden);
        self.ops.push(Op::AddSilu { xs: hidden, addend: None, out: hidden });
        self.linear(hidden, second, time);
        time
    }

    /// Adds the operations from the cached modulations of these sets to the next latents.
    fn decode(&mut self, rows: CfgBatch, combined: RangeInclusive<usize>) {
        let (ids, weights, d) = (&self.of.ids, &self.of.weights, self.hidden());
        let (r, l) = (self.of.rows(rows), self.of.tokens());
        self.embed(rows, weights.x_embed);
        let (sets, scalars) = (&ids.decoder_modulations, self.whole(ids.scalars));
        let row = |block: usize, width: usize| Modulation {
            buffer: sets.buffer,
            start: sets.start(*combined.start(), block),
            stride: width,
            width,
            rows: r * l,
            tokens_per_row: 1,
        };
        let blocks = weights.decoder.len();
        let modulations: Vec<_> = (0..blocks).map(|i| row(i, 6 * d)).collect();
        let out = self.matrix(ids.normed, r * l, d);
        let last = Norm { kind: NormKind::Layer, shift_scale: row(blocks, 2 * d), out };
        let forecast = Forecast { sets: combined.clone().count(), stride: sets.set_len, scalars };
        let forecast = (forecast.sets > 1).then_some(forecast);
        self.trunk(r, &weights.decoder, &modulations, Some(last), forecast);
        let velocity = self.matrix(ids.velocity, r * l, self.of.cfg.patch_dim());
        self.linear(out, weights.final_linear, velocity);
        let latents = self.whole(ids.latents);
        self.ops.push(Op::Euler { velocity, scalars, latents, guided: rows == CfgBatch::CondUncond });
    }

    /// Blocks on the tokens in `xs`; every norm but the first is done together with the addition before it.
    fn trunk(
        &mut self,
        r: usize,
        blocks: &[Block],
        modulations: &[Modulation],
        last: Option<Norm>,
        forecast: Option<Forecast>,
    ) {
        let (ids, d) = (&self.of.ids, self.hidden());
        let (t, f) = (r * self.of.tokens(), padded_mlp_size(d));
        let [xs, normed, attn_out, ys] =
            [ids.xs, ids.normed, ids.attn_out, ids.ys].map(|it| self.matrix(it, t, d));
        let (qkv, rope) = (self.matrix(ids.qkv, t, 3 * d), self.whole(ids.rope));
        let (gate_up, gated) = (self.matrix(ids.gate_up, t, 2 * f), self.matrix(ids.gated, t, f));
        let rms = |weight, shift_scale| Some(Norm { kind: NormKind::Rms(weight), shift_scale, out: normed });
        let modulations: Vec<_> = modulations.iter().map(|&it| parts_of(it)).collect();
        let first_of = |i: usize| {
            let (block, [shift_scale1, ..]): (&Block, _) = (blocks.get(i)?, *modulations.get(i)?);
            rms(block.norm1, shift_scale1)
        };
        if let norm @ Some(_) = first_of(0).or(last) {
            self.ops.push(Op::GateNorm { xs, branch: None, norm, forecast });
        }
        for (i, (block, &[_, gate1, shift_scale2, gate2])) in blocks.iter().zip(&modulations).enumerate() {
            self.gemm(normed, block.qkv, None, qkv);
            let (q_norm, k_norm) = (block.q_norm, block.k_norm);
            self.ops.push(Op::Attention { qkv, q_norm, k_norm, rope, out: attn_out });
            self.linear(attn_out, block.proj, ys);
            let norm = rms(block.norm2, shift_scale2);
            self.ops.push(Op::GateNorm { xs, branch: Some((ys, gate1)), norm, forecast });
            self.gemm(normed, block.w13, None, gate_up);
            self.ops.push(Op::SwiGlu { xs: gate_up, out: gated });
            self.gemm(gated, block.w2, None, ys);
            let norm = first_of(i + 1).or(last);
            self.ops.push(Op::GateNorm { xs, branch: Some((ys, gate2)), norm, forecast });
        }
    }
}
