//! Launches kernels for operations.

use ddt_kernels::cuda::{
    Activation, AddRows, Attention, Branch, ClassCondition, Cuda, CudaError, Element, Float,
    Forecast as KernelForecast, GateNorm, Gemm, Grid, GuidedStep, Modulate, Norm as KernelNorm, Rows, Slice,
    Steps, SwiGlu,
};
use half::bf16;

use super::weights::DeviceWeights;
use crate::{
    arena::{ArenaPlan, WORKSPACE_BYTES},
    buffer::Span,
    op::{Forecast, Modulation, Norm, NormKind, Op},
    program::Programs,
    weights::{WeightId, padded_mlp_size},
};

/// Context of all launches of a batch.
pub(super) struct Launcher<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) programs: &'a Programs,
    pub(super) plan: &'a ArenaPlan,
    pub(super) arena: &'a Slice<u8>,
    pub(super) weights: &'a DeviceWeights,
    pub(super) steps: &'a Steps,
}

const EPS: f32 = 1e-6;
const MAX_PERIOD: f32 = 10.0;

/// A type of elements for which the right attention is known.
pub(super) trait Attend: Float {
    fn attend(cuda: &Cuda, arguments: &Attention<'_, Self>) -> Result<(), CudaError>;
}

impl Attend for bf16 {
    fn attend(cuda: &Cuda, arguments: &Attention<'_, bf16>) -> Result<(), CudaError> {
        // Tensor cores take eight channels at once.
        if arguments.q_weight.len().is_multiple_of(8) {
            cuda.attention(arguments)
        } else {
            cuda.attention_plain(arguments)
        }
    }
}

impl Attend for f32 {
    fn attend(cuda: &Cuda, arguments: &Attention<'_, f32>) -> Result<(), CudaError> {
        cuda.attention_plain(arguments)
    }
}

impl Launcher<'_> {
    /// Puts a whole step on the stream, and moves on to the next one's scalars.
    pub(super) fn run<T: Attend>(&self, ops: &[Op]) -> Result<(), CudaError> {
        ops.iter().try_for_each(|op| self.launch::<T>(op))?;
        self.cuda.next_step(self.steps)
    }

    /// Finds the fastest algorithm for every GEMM of these operations; overwrites their results.
    pub(super) fn tune<T: Attend>(&self, ops: &[Op]) -> Result<(), CudaError> {
        ops.iter().try_for_each(|op| self.gemm::<T>(op, |gemm| self.cuda.tune_gemm(gemm)))
    }

    pub(super) fn slice<T: Element>(&self, span: Span) -> Result<Slice<T>, CudaError> {
        let start = self.plan.offsets()[span.buffer.index()] + span.start * size_of::<T>();
        self.arena.sub(start..start + span.len * size_of::<T>())?.cast()
    }

    fn weight<T: Float>(&self, id: WeightId) -> Result<Slice<T>, CudaError> {
        self.weights.slice(&self.programs.weights().all()[id.index()], id.index())
    }

    fn grid(&self) -> Grid {
        let (cfg, batch) = (self.programs.config(), self.programs.batch());
        Grid {
            images: batch.images,
            channels: cfg.in_channels,
            height: batch.height,
            width: batch.width,
            patch: cfg.patch_size,
        }
    }

    fn launch<T: Attend>(&self, op: &Op) -> Result<(), CudaError> {
        let (cuda, cfg) = (self.cuda, self.programs.config());
        let d = cfg.hidden_size;
        match *op {
            // The scalars are in the table of steps.
            Op::TimestepEmbedding { out, scalars: _ } => {
                cuda.timestep_embedding(self.steps, MAX_PERIOD, &self.slice::<T>(out)?)
            }
            Op::ClassCondition { table, labels, time, out } => cuda.class_condition(&ClassCondition {
                labels: &self.slice(labels)?,
                table: &self.weight::<T>(table)?,
                width: d,
                time: Some(&self.slice(time)?),
                out: &self.slice(out)?,
            }),
            Op::AddSilu { xs, addend, out } => {
                let addend = addend.map(|it| self.slice::<T>(it)).transpose()?;
                cuda.add_rows(&AddRows {
                    x: &self.slice(xs)?,
                    width: d,
                    addend: addend.as_ref().map(Rows::one),
                    activation: Activation::Silu,
                    out: &self.slice(out)?,
                })
            }
            Op::Patchify { latents, out } => {
                cuda.patchify(&self.slice(latents)?, self.grid(), &self.slice::<T>(out)?)
            }
            Op::Gemm { .. } => self.gemm::<T>(op, |gemm| cuda.gemm(gemm)),
            Op::GateNorm { xs, branch, norm, forecast } => self.gate_norm::<T>(xs, branch, norm, forecast),
            Op::Attention { qkv, q_norm, k_norm, rope, out } => T::attend(
                cuda,
                &Attention {
                    qkv: &self.slice(qkv)?,
                    q_weight: &self.weight(q_norm)?,
                    k_weight: &self.weight(k_norm)?,
                    rope: &self.slice(rope)?,
                    tokens: self.programs.operands.tokens(),
                    heads: cfg.num_heads,
                    eps: EPS,
                    out: &self.slice(out)?,
                },
            ),
            Op::SwiGlu { xs, out } => {
                let hidden = padded_mlp_size(d);
                cuda.swiglu(&SwiGlu { ab: &self.slice::<T>(xs)?, hidden, out: &self.slice(out)? })
            }
            // One batch or both: the launcher sees which by the number of tokens.
            Op::Euler { velocity, latents, scalars: _, guided: _ } => cuda.guided_step(&GuidedStep {
                tokens: &self.slice::<T>(velocity)?,
                grid: self.grid(),
                steps: self.steps,
                velocity: None,
                x: Some(&self.slice(latents)?),
            }),
        }
    }

    /// Multiplies; for other operations it does nothing.
    fn gemm<T: Float>(
        &self,
        op: &Op,
        multiply: impl Fn(&Gemm<'_, T>) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Op::Gemm { input, weight, bias, out, shape } = *op else { return Ok(()) };
        let at = self.plan.workspace();
        let bias = bias.map(|it| self.weight::<T>(it)).transpose()?;
        multiply(&Gemm {
            input: &self.slice(input)?,
            weight: &self.weight(weight)?,
            bias: bias.as_ref(),
            out: &self.slice(out)?,
            depth: shape.k,
            workspace: &self.arena.sub(at..at + WORKSPACE_BYTES)?,
        })
    }

    fn gate_norm<T: Float>(
        &self,
        xs: Span,
        branch: Option<(Span, Modulation)>,
        norm: Option<Norm>,
        forecast: Option<Forecast>,
    ) -> Result<(), CudaError> {
        let width = self.programs.config().hidden_size;
        let branch = match branch {
            None => None,
            Some((ys, gate)) => Some((self.slice::<T>(ys)?, gate, self.rows(gate)?)),
        };
        let weight = match norm.map(|it| it.kind) {
            Some(NormKind::Rms(id)) => Some(self.weight::<T>(id)?),
            _ => None,
        };
        let norm = match norm {
            None => None,
            Some(norm) => Some((norm.shift_scale, self.rows(norm.shift_scale)?, self.slice::<T>(norm.out)?)),
        };
        let x = self.slice(xs)?;
        self.cuda.gate_norm(&GateNorm {
            x: &x,
            width,
            branch: branch.as_ref().map(|(y, gate, data)| Branch {
                y,
                bias: None,
                gate: columns(data, *gate, 0),
                sum: &x,
            }),
            modulate: norm.as_ref().map(|(rows, data, out)| Modulate {
                norm: weight.as_ref().map_or(KernelNorm::Layer, KernelNorm::Rms),
                shift: columns(data, *rows, 0),
                scale: columns(data, *rows, width),
                eps: EPS,
                out,
            }),
            forecast: forecast.map(|Forecast { sets, stride, scalars: _ }| KernelForecast {
                sets,
                stride,
                steps: self.steps,
            }),
        })
    }

    /// The whole buffer that a modulation is in, with all sets of it.
    fn rows<T: Float>(&self, modulation: Modulation) -> Result<Slice<T>, CudaError> {
        self.slice(self.programs.operands.whole(modulation.buffer))
    }
}

/// Columns of a modulation, from its `first`; `data` begins where its buffer does.
fn columns<T>(data: &Slice<T>, modulation: Modulation, first: usize) -> Rows<'_, T> {
    Rows {
        data,
        stride: modulation.stride,
        first: modulation.start + first,
        tokens_per_row: modulation.tokens_per_row,
    }
}
