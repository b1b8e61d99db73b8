//! Programs of one network for one size of batch.

use ddt_flow::CfgBatch;
use ddt_model::DdtConfig;

use super::{
    buffer::{Buffer, BufferId, Element, Lifetime, Span},
    op::Op,
    steps,
};
use crate::{
    error::GpuError,
    step_kind::StepKind,
    weights::{TIMESTEP_FREQUENCIES, WeightTable, padded_mlp_size},
};

/// Number type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Numbers of 16 bits, sums in f32.
    Bf16,
    /// All in f32, without TF32.
    F32,
}

impl Precision {
    /// The type of an element.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::F32 => Element::F32,
        }
    }
}

/// Size and precision of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Images.
    pub images: usize,
    /// Height of a latent, a multiple of the patch.
    pub height: usize,
    /// Width of a latent, a multiple of the patch.
    pub width: usize,
    /// Number type of the network.
    pub precision: Precision,
}

/// The programs of a run, one for each kind of step.
///
/// Programs are plain lists of operations on buffers, made without a device: the CUDA executor captures
/// them as graphs, and [`Reference`](crate::Reference) runs them on the CPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Programs {
    pub(crate) cfg: DdtConfig,
    pub(crate) batch: Batch,
    pub(crate) weights: WeightTable,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) ids: Ids,
    pub(crate) steps: [Vec<Op>; 5],
}

/// The buffers by their contents. Letters: `B` images, `L` tokens of one, `D` hidden size, `F` hidden size of
/// the MLP; all have room for both batches of guidance, `2B` rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    /// (B, C, H, W) f32.
    pub(crate) latents: BufferId,
    /// `[t, dt, scale, guided channels]` f32.
    pub(crate) scalars: BufferId,
    /// (2B) u32: labels, then "no class".
    pub(crate) labels: BufferId,
    /// (L, K / 2, 2) f32: cosine and sine of each pair's angle.
    pub(crate) rope: BufferId,
    /// (2B L, 6D) a block.
    pub(crate) decoder_modulations: Vec<BufferId>,
    /// (2B L, 2D).
    pub(crate) final_modulation: BufferId,
    /// (1, 256).
    pub(crate) waves: BufferId,
    /// (1, D), twice: inside the time's MLP and after it.
    pub(crate) time_hidden: BufferId,
    pub(crate) time: BufferId,
    /// (2B, D).
    pub(crate) condition: BufferId,
    /// (2B, blocks 6D).
    pub(crate) encoder_modulations: BufferId,
    /// (2B L, C P^2).
    pub(crate) patches: BufferId,
    /// (2B L, D): the residual stream.
    pub(crate) xs: BufferId,
    /// (2B L, D): what a layer reads.
    pub(crate) normed: BufferId,
    /// (2B L, 3D).
    pub(crate) qkv: BufferId,
    /// (2B L, D).
    pub(crate) attended: BufferId,
    /// (2B L, D): what a layer adds.
    pub(crate) ys: BufferId,
    /// (2B L, 2F).
    pub(crate) gate_up: BufferId,
    /// (2B L, F).
    pub(crate) gated: BufferId,
    /// (2B L, C P^2).
    pub(crate) velocity: BufferId,
}

impl Programs {
    /// The programs of a network of these sizes.
    ///
    /// # Errors
    /// [`GpuError::Config`] for sizes that make no network, [`GpuError::Batch`] for a batch without images
    /// or with latents that do not divide into patches, [`GpuError::TooLarge`] for one whose buffers no GPU
    /// could hold.
    pub fn new(cfg: &DdtConfig, batch: Batch) -> Result<Self, GpuError> {
        cfg.validate()?;
        let whole = |side: usize| (1..=1 << 14).contains(&side) && side.is_multiple_of(cfg.patch_size);
        if !(1..=1 << 16).contains(&batch.images) || !whole(batch.height) || !whole(batch.width) {
            let Batch { images, height, width, .. } = batch;
            return Err(GpuError::Batch { images, height, width, patch_size: cfg.patch_size });
        }
        let weights = WeightTable::new(cfg);
        let (buffers, ids) = Buffers::of(cfg, batch);
        let mut programs = Self { cfg: cfg.clone(), batch, weights, buffers, ids, steps: Default::default() };
        // Index arithmetic below is in range once every buffer has a sane size.
        if let Some(buffer) = programs.buffers.iter().find(|it| it.len > 1 << 40) {
            return Err(GpuError::TooLarge { name: buffer.name.clone(), elements: buffer.len });
        }
        programs.steps = StepKind::ALL.map(|kind| steps::step(&programs, kind));
        Ok(programs)
    }

    /// The network's sizes.
    pub fn config(&self) -> &DdtConfig {
        &self.cfg
    }

    /// Size and precision of a batch.
    pub fn batch(&self) -> Batch {
        self.batch
    }

    /// The weights, which operations name by position.
    pub fn weights(&self) -> &WeightTable {
        &self.weights
    }

    /// The buffers, which operations name by position.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The operations of a step of this kind.
    pub fn step(&self, kind: StepKind) -> &[Op] {
        &self.steps[kind.index()]
    }

    /// The programs of all kinds of steps, in the order of [`StepKind::ALL`].
    pub fn all(&self) -> impl Iterator<Item = &[Op]> {
        self.steps.iter().map(Vec::as_slice)
    }

    /// Tokens of an image, `L`.
    pub fn tokens(&self) -> usize {
        self.cfg.num_tokens(self.batch.height, self.batch.width)
    }

    pub(crate) fn whole(&self, buffer: BufferId) -> Span {
        buffer.span(0, self.buffers[buffer.0].len)
    }

    /// Rows of the network.
    pub(crate) fn rows(&self, rows: CfgBatch) -> usize {
        rows.count(self.batch.images)
    }
}

/// Names buffers one after the other.
struct Buffers {
    all: Vec<Buffer>,
    element: Element,
}

impl Buffers {
    fn push(&mut self, name: &str, element: Element, lifetime: Lifetime, dims: &[usize]) -> BufferId {
        let len = dims.iter().fold(1, |product: usize, &it| product.saturating_mul(it));
        self.all.push(Buffer { name: name.to_owned(), element, len, lifetime });
        BufferId(self.all.len() - 1)
    }

    fn kept(&mut self, name: &str, dims: &[usize]) -> BufferId {
        self.push(name, self.element, Lifetime::Run, dims)
    }

    fn step(&mut self, name: &str, dims: &[usize]) -> BufferId {
        self.push(name, self.element, Lifetime::Step, dims)
    }

    fn of(cfg: &DdtConfig, batch: Batch) -> (Vec<Buffer>, Ids) {
        let mut it = Self { all: Vec::new(), element: batch.precision.element() };
        let (d, f) = (cfg.hidden_size, padded_mlp_size(cfg.hidden_size));
        let (rows, l) = (CfgBatch::CondUncond.count(batch.images), cfg.num_tokens(batch.height, batch.width));
        let t = rows.saturating_mul(l);
        let latents = [batch.images, cfg.in_channels, batch.height, batch.width];
        let (run, rope) = (Lifetime::Run, [l, cfg.head_dim()]);
        let decoder = |i: usize| format!("modulation of decoder block {i}");
        let ids = Ids {
            latents: it.push("latents", Element::F32, run, &latents),
            scalars: it.push("step scalars", Element::F32, run, &[SCALARS]),
            labels: it.push("labels", Element::U32, run, &[rows]),
            rope: it.push("rotary angles", Element::F32, run, &rope),
            decoder_modulations: (0..cfg.num_decoder_blocks)
                .map(|i| it.kept(&decoder(i), &[t, 6, d]))
                .collect(),
            final_modulation: it.kept("final modulation", &[t, 2, d]),
            waves: it.step("time waves", &[TIMESTEP_FREQUENCIES]),
            time_hidden: it.step("time, hidden", &[d]),
            time: it.step("time", &[d]),
            condition: it.step("condition", &[rows, d]),
            encoder_modulations: it.step("modulations of the encoder", &[rows, cfg.num_encoder_blocks, 6, d]),
            patches: it.step("patches", &[t, cfg.patch_dim()]),
            xs: it.step("tokens", &[t, d]),
            normed: it.step("normed tokens", &[t, d]),
            qkv: it.step("queries, keys, values", &[t, 3, d]),
            attended: it.step("attended", &[t, d]),
            ys: it.step("addends", &[t, d]),
            gate_up: it.step("gate and up", &[t, 2, f]),
            gated: it.step("gated", &[t, f]),
            velocity: it.step("velocity patches", &[t, cfg.patch_dim()]),
        };
        (it.all, ids)
    }
}

/// Room of the step's scalars: `t`, `dt`, guidance scale, guided channels.
const SCALARS: usize = 4;
