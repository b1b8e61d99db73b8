//! Operands of a batch's operations: the network's weights, and buffers.

use ddt_flow::CfgBatch;
use ddt_model::{DdtConfig, ModelError};

use crate::{
    buffer::{Batch, Buffer, BufferId, Element, Lifetime, Span},
    error::GpuError,
    weights::{TIMESTEP_FREQUENCIES, WeightTable, padded_mlp_size},
};

/// Weights and buffers of a network for one size of batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operands {
    pub(crate) cfg: DdtConfig,
    pub(crate) batch: Batch,
    pub(crate) weights: WeightTable,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) ids: Ids,
}

/// The buffers by their contents. Letters: `B` images, `L` tokens of one, `D` hidden size, `F` hidden size of
/// the MLP; all have room for both batches of guidance, `2B` rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    /// (B, C, H, W) f32.
    pub(crate) latents: BufferId,
    /// `[t, dt, scale, guided channels, weights of the sets of modulations]` f32.
    pub(crate) scalars: BufferId,
    /// (2B) u32: labels, then "no class".
    pub(crate) labels: BufferId,
    /// (L, K / 2, 2) f32: cosine and sine of each pair's angle.
    pub(crate) rope: BufferId,
    pub(crate) decoder_modulations: ModulationSets,
    /// (1, 256).
    pub(crate) timestep_embedding: BufferId,
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
    pub(crate) attn_out: BufferId,
    /// (2B L, D): what a layer adds.
    pub(crate) ys: BufferId,
    /// (2B L, 2F).
    pub(crate) gate_up: BufferId,
    /// (2B L, F).
    pub(crate) gated: BufferId,
    /// (2B L, C P^2).
    pub(crate) velocity: BufferId,
}

/// The modulations that the last runs of the encoder left for the decoder, a set for each run: a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModulationSets {
    /// (sets, elements of a set).
    pub(crate) buffer: BufferId,
    /// Elements of a block's part of a set, (2B L, 6D).
    block_len: usize,
    /// Elements of a set: the decoder's blocks, then the final layer, (2B L, 2D).
    pub(crate) set_len: usize,
}

impl ModulationSets {
    /// The first element of a decoder block's part of a set, or of the final layer's after the last block's.
    pub(crate) fn start(&self, set: usize, block: usize) -> usize {
        set * self.set_len + block * self.block_len
    }
}

impl Operands {
    /// # Errors
    /// As [`Programs::new`](crate::Programs::new).
    pub(crate) fn new(cfg: &DdtConfig, batch: Batch) -> Result<Self, GpuError> {
        cfg.validate().map_err(ModelError::from)?;
        let Batch { images, height, width, .. } = batch;
        let patch_size = cfg.patch_size;
        let whole = |side: usize| (1..=1 << 14).contains(&side) && side.is_multiple_of(patch_size);
        if !(1..=1 << 16).contains(&images) || !whole(height) || !whole(width) {
            return Err(GpuError::Unsupported(format!(
                "expected 1 to 65536 images with sides that are positive multiples of {patch_size}, got {images} of \
                 {height} x {width}"
            )));
        }
        let (buffers, ids) = buffers(cfg, batch);
        // Index arithmetic is in range once every buffer has a sane size.
        if let Some(Buffer { name, len, .. }) = buffers.iter().find(|it| it.len > 1 << 40) {
            return Err(GpuError::Unsupported(format!(
                "the buffer for {name} would have {len} elements; generate fewer or smaller images at once"
            )));
        }
        Ok(Self { cfg: cfg.clone(), batch, weights: WeightTable::new(cfg), buffers, ids })
    }

    /// Tokens of an image, `L`.
    pub(crate) fn tokens(&self) -> usize {
        self.cfg.num_tokens(self.batch.height, self.batch.width)
    }

    /// Rows of the network.
    pub(crate) fn rows(&self, rows: CfgBatch) -> usize {
        rows.count(self.batch.images)
    }

    pub(crate) fn whole(&self, buffer: BufferId) -> Span {
        buffer.span(0, self.buffers[buffer.index()].len)
    }
}

fn buffers(cfg: &DdtConfig, batch: Batch) -> (Vec<Buffer>, Ids) {
    let mut all = Vec::new();
    let mut push = |name: &str, element: Element, lifetime: Lifetime, dims: &[usize]| {
        let len = dims.iter().fold(1, |len: usize, &it| len.saturating_mul(it));
        all.push(Buffer { name: name.to_owned(), element, len, lifetime });
        BufferId(all.len() - 1)
    };
    let (run, element) = (Lifetime::Run, batch.precision.element());
    let (d, f) = (cfg.hidden_size, padded_mlp_size(cfg.hidden_size));
    let (rows, l) = (CfgBatch::CondUncond.count(batch.images), cfg.num_tokens(batch.height, batch.width));
    let t = rows.saturating_mul(l);
    let latents = [batch.images, cfg.in_channels, batch.height, batch.width];
    let latents = push("latents", Element::F32, run, &latents);
    let scalars = push("step scalars", Element::F32, run, &[SCALARS]);
    let labels = push("labels", Element::U32, run, &[rows]);
    let rope = push("rotary angles", Element::F32, run, &[l, cfg.head_dim()]);
    let row = d.saturating_mul(6).saturating_mul(cfg.num_decoder_blocks).saturating_add(d.saturating_mul(2));
    let decoder_modulations = ModulationSets {
        buffer: push("modulations of the decoder", element, run, &[batch.order.points(), t, row]),
        block_len: t.saturating_mul(6).saturating_mul(d),
        set_len: t.saturating_mul(row),
    };
    let mut step = |name: &str, dims: &[usize]| push(name, element, Lifetime::Step, dims);
    let ids = Ids {
        latents,
        scalars,
        labels,
        rope,
        decoder_modulations,
        timestep_embedding: step("timestep embedding", &[TIMESTEP_FREQUENCIES]),
        time_hidden: step("time, hidden", &[d]),
        time: step("time", &[d]),
        condition: step("condition", &[rows, d]),
        encoder_modulations: step("modulations of the encoder", &[rows, cfg.num_encoder_blocks, 6, d]),
        patches: step("patches", &[t, cfg.patch_dim()]),
        xs: step("tokens", &[t, d]),
        normed: step("normed tokens", &[t, d]),
        qkv: step("queries, keys, values", &[t, 3, d]),
        attn_out: step("attention output", &[t, d]),
        ys: step("addends", &[t, d]),
        gate_up: step("gate and up", &[t, 2, f]),
        gated: step("gated", &[t, f]),
        velocity: step("velocity patches", &[t, cfg.patch_dim()]),
    };
    (all, ids)
}

/// The step's scalars: `t`, `dt`, guidance scale, guided channels, and three weights.
const SCALARS: usize = 7;
