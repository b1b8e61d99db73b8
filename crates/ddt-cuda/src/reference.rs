//! Programs run on the CPU, one plain loop an operation: what judges them without a GPU.

use half::bf16;

use crate::{
    arena::ArenaPlan,
    error::GpuError,
    program::{Element, Lifetime, Op, Precision, Programs, Span},
    run::{Executor, Run},
    weight_source::{WeightSource, read_part},
};

mod attention;
mod rows;

/// Runs programs on the CPU, on the same arena and with the same roundings as the GPU, slowly.
///
/// Before each program it fills every place that holds nothing from step to step with NaN, so a program that
/// reads what it did not write shows.
#[derive(Debug)]
pub struct Reference {
    programs: Programs,
    plan: ArenaPlan,
    weights: Vec<Vec<f32>>,
    memory: Vec<u8>,
    scalars: Vec<[f32; 4]>,
}

impl Reference {
    /// Reads the weights and places the buffers.
    ///
    /// # Errors
    /// [`GpuError::Weight`] and [`GpuError::Candle`] for weights that are not those of the network.
    pub fn new(programs: Programs, source: WeightSource<'_>) -> Result<Self, GpuError> {
        let plan = ArenaPlan::new(&programs);
        let mut weights = Vec::new();
        for weight in programs.weights().all() {
            let mut values = Vec::with_capacity(weight.len());
            for part in 0..weight.parts.len() {
                values.extend(read_part(weight, part, source)?);
            }
            if programs.batch().precision == Precision::Bf16 {
                values.iter_mut().for_each(|it| *it = bf16::from_f32(*it).to_f32());
            }
            weights.push(values);
        }
        let memory = vec![0xff; plan.bytes()];
        Ok(Self { programs, plan, weights, memory, scalars: Vec::new() })
    }

    /// The contents of a buffer's stretch as f32, for looking inside.
    pub fn read(&self, span: Span) -> Vec<f32> {
        let element = self.programs.buffers()[span.buffer.index()].element;
        let bytes = &self.memory[self.bytes_of(span)];
        match element {
            Element::F32 => words(bytes).map(f32::from_bits).collect(),
            Element::U32 => words(bytes).map(|it| it as f32).collect(),
            Element::Bf16 => {
                let halves = bytes.chunks_exact(2).map(|it| u16::from_le_bytes([it[0], it[1]]));
                halves.map(|it| bf16::from_bits(it).to_f32()).collect()
            }
        }
    }

    fn bytes_of(&self, span: Span) -> std::ops::Range<usize> {
        let size = self.programs.buffers()[span.buffer.index()].element.bytes();
        let start = self.plan.offsets()[span.buffer.index()] + span.start * size;
        start..start + span.len * size
    }

    fn write(&mut self, span: Span, values: &[f32]) {
        debug_assert_eq!(span.len, values.len());
        let range = self.bytes_of(span);
        let bytes = &mut self.memory[range];
        match self.programs.buffers()[span.buffer.index()].element {
            Element::F32 => store(bytes, values.iter().map(|it| it.to_bits().to_le_bytes())),
            Element::U32 => store(bytes, values.iter().map(|it| (*it as u32).to_le_bytes())),
            Element::Bf16 => store(bytes, values.iter().map(|it| bf16::from_f32(*it).to_le_bytes())),
        }
    }

    fn weight(&self, id: crate::weights::WeightId) -> &[f32] {
        &self.weights[id.index()]
    }

    fn run_all(&mut self, ops: &[Op]) {
        for (buffer, &start) in self.programs.buffers().iter().zip(self.plan.offsets()) {
            if buffer.lifetime == Lifetime::Step {
                self.memory[start..start + buffer.bytes()].fill(0xff);
            }
        }
        ops.iter().for_each(|op| self.run_one(op));
    }

    fn run_one(&mut self, op: &Op) {
        let (cfg, l) = (self.programs.config().clone(), self.programs.tokens());
        let d = cfg.hidden_size;
        match *op {
            Op::TimeWaves { scalars, out } => {
                let (t, half) = (self.read(scalars)[0], out.len / 2);
                let angle = |k: usize| t * (-(10f64.ln()) * k as f64 / half as f64).exp() as f32;
                let waves: Vec<f32> =
                    (0..half).map(|k| angle(k).cos()).chain((0..half).map(|k| angle(k).sin())).collect();
                self.write(out, &waves);
            }
            Op::ClassCondition { table, labels, time, out } => {
                let (labels, time, table) = (self.read(labels), self.read(time), self.weight(table));
                let row = |&label: &f32| table[label as usize * d..][..d].iter().zip(&time);
                let values: Vec<f32> = labels.iter().flat_map(row).map(|(y, t)| rows::silu(y + t)).collect();
                self.write(out, &values);
            }
            Op::Silu { xs, out } => {
                let values: Vec<f32> = self.read(xs).into_iter().map(rows::silu).collect();
                self.write(out, &values);
            }
            Op::AddSilu { xs, addend, out } => {
                let addend = self.read(addend);
                let xs = self.read(xs);
                let values: Vec<f32> =
                    xs.iter().zip(addend.iter().cycle()).map(|(x, a)| rows::silu(x + a)).collect();
                self.write(out, &values);
            }
            Op::Patchify { latents, out } => {
                let values = self.read(latents);
                let mut patches = vec![0.0; out.len];
                let map = self.patch_map();
                for copy in patches.chunks_exact_mut(values.len()) {
                    map.iter().zip(&values).for_each(|(&to, &value)| copy[to] = value);
                }
                self.write(out, &patches);
            }
            Op::Gemm { input, weight, bias, out, shape } => {
                let xs = self.read(input);
                let bias = bias.map(|it| self.weight(it));
                let values = rows::product(&xs, self.weight(weight), bias, shape);
                self.write(out, &values);
            }
            Op::Norm { xs, norm } => {
                let xs = self.read(xs);
                self.norm(&xs, norm);
            }
            Op::Residual { xs, ys, gate, norm } => {
                let (mut sum, ys) = (self.read(xs), self.read(ys));
                let gates = self.read(gate.span());
                for (token, (x, y)) in sum.chunks_exact_mut(d).zip(ys.chunks_exact(d)).enumerate() {
                    let gate = &gates[token / gate.tokens_per_row * gate.stride..][..d];
                    x.iter_mut().zip(y).zip(gate).for_each(|((x, y), g)| *x += g * y);
                }
                self.write(xs, &sum);
                if let Some(norm) = norm {
                    // The norm sees the sum before it is rounded, as the fused kernel's does.
                    self.norm(&sum, norm);
                }
            }
            Op::Attention { qkv, q_norm, k_norm, rope, out } => {
                let (xs, rope) = (self.read(qkv), self.read(rope));
                let heads = attention::Heads { tokens: l, hidden: d, head: cfg.head_dim() };
                let norms = (self.weight(q_norm), self.weight(k_norm));
                let values = attention::attention(&xs, norms, &rope, heads);
                self.write(out, &values);
            }
            Op::SwiGlu { xs, out } => {
                let xs = self.read(xs);
                let f = crate::weights::padded_mlp_size(d);
                let gated = |row: &[f32]| -> Vec<f32> {
                    let (gate, up) = row.split_at(f);
                    gate.iter().zip(up).map(|(g, u)| rows::silu(*g) * u).collect()
                };
                let values: Vec<f32> = xs.chunks_exact(2 * f).flat_map(gated).collect();
                self.write(out, &values);
            }
            Op::Euler { velocity, scalars, latents, guided } => {
                let (v, mut x) = (self.read(velocity), self.read(latents));
                let step = self.read(scalars);
                let (dt, scale, channels) = (step[1], step[2], step[3]);
                let (half, map) = (x.len(), self.patch_map());
                let (plane, image) = (plane_of(&self.programs), half / self.programs.batch().images);
                for (i, (x, &at)) in x.iter_mut().zip(&map).enumerate() {
                    let class = v[at];
                    let guided = guided && ((i % image / plane) as f32) < channels;
                    let velocity = if guided { v[half + at] + scale * (class - v[half + at]) } else { class };
                    *x += dt * velocity;
                }
                self.write(latents, &x);
            }
        }
    }

    fn norm(&mut self, xs: &[f32], norm: crate::program::Norm) {
        let d = self.programs.config().hidden_size;
        let weight = match norm.kind {
            crate::program::NormKind::Rms(id) => Some(self.weight(id)),
            crate::program::NormKind::Layer => None,
        };
        let table = self.read(norm.shift_scale.span());
        let values = rows::norm(xs, weight, (&table, norm.shift_scale), d);
        self.write(norm.out, &values);
    }

    /// For each element of the latents its place among the patches.
    fn patch_map(&self) -> Vec<usize> {
        let (cfg, batch) = (self.programs.config(), self.programs.batch());
        let (c, p, h, w) = (cfg.in_channels, cfg.patch_size, batch.height, batch.width);
        let mut map = Vec::with_capacity(batch.images * c * h * w);
        for image in 0..batch.images {
            for channel in 0..c {
                for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                    let token = (image * (h / p) + y / p) * (w / p) + x / p;
                    map.push((token * c + channel) * p * p + y % p * p + x % p);
                }
            }
        }
        map
    }
}

impl Executor for Reference {
    fn start(&mut self, run: &Run) -> Result<(), GpuError> {
        let ids = self.programs.ids.clone();
        let rope = run.rope(&self.programs)?;
        self.write(self.programs.whole(ids.latents), &run.noise);
        let labels: Vec<f32> = run.labels.iter().map(|&it| it as f32).collect();
        self.write(self.programs.whole(ids.labels), &labels);
        self.write(self.programs.whole(ids.rope), &rope);
        self.scalars = run.steps.iter().map(|it| it.scalars).collect();
        Ok(())
    }

    fn step(&mut self, index: usize, kind: crate::StepKind) -> Result<(), GpuError> {
        let scalars = self.scalars.get(index).copied().unwrap_or([f32::NAN; 4]);
        self.write(self.programs.whole(self.programs.ids.scalars), &scalars);
        let ops = self.programs.step(kind).to_vec();
        self.run_all(&ops);
        Ok(())
    }

    fn latents(&mut self) -> Result<Vec<f32>, GpuError> {
        Ok(self.read(self.programs.whole(self.programs.ids.latents)))
    }
}

/// Elements of one channel of a latent.
fn plane_of(programs: &Programs) -> usize {
    programs.batch().height * programs.batch().width
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]))
}

fn store<const N: usize>(bytes: &mut [u8], values: impl Iterator<Item = [u8; N]>) {
    bytes.chunks_exact_mut(N).zip(values).for_each(|(to, from)| to.copy_from_slice(&from));
}
