//! The kernels by name, as their sources define them, and the shared memory that they take.

use half::bf16;

/// A kernel in bf16 and in f32, at [`super::Float::INDEX`].
pub(super) type Pair = [&'static str; 2];

macro_rules! pair {
    ($name:literal) => {
        [concat!("ddt_", $name, "_bf16"), concat!("ddt_", $name, "_f32")]
    };
}

/// By `ceil(D / 256) - 1`: how many 8-element chunks a lane holds.
pub(super) const GATE_NORM: [Pair; 8] = [
    pair!("gate_norm_1"),
    pair!("gate_norm_2"),
    pair!("gate_norm_3"),
    pair!("gate_norm_4"),
    pair!("gate_norm_5"),
    pair!("gate_norm_6"),
    pair!("gate_norm_7"),
    pair!("gate_norm_8"),
];
/// 16 bytes at a time, or one element at a time.
pub(super) const SWIGLU: [Pair; 2] = [pair!("swiglu"), pair!("swiglu_single")];
pub(super) const ADD_ROWS: Pair = pair!("add_rows");
pub(super) const CLASS_CONDITION: Pair = pair!("class_condition");
pub(super) const TIMESTEP_EMBEDDING: Pair = pair!("timestep_embedding");
pub(super) const PATCHIFY: Pair = pair!("patchify");
pub(super) const GUIDED_STEP: Pair = pair!("guided_step");
pub(super) const NEXT_STEP: &str = "ddt_next_step";
pub(super) const ATTENTION_PLAIN: Pair = pair!("attention_plain");
pub(super) const COPY: &str = "ddt_copy";
pub(super) const GATHER: Pair = pair!("gather");
pub(super) const POOL: Pair = pair!("pool");
pub(super) const COLUMNS: Pair = pair!("columns");
pub(super) const DOUBLE_SIZE: Pair = pair!("double_size");
pub(super) const CHANNELS_LAST: Pair = pair!("channels_last");
pub(super) const CHANNELS_FIRST: Pair = pair!("channels_first");
pub(super) const ACCUMULATE: Pair = pair!("accumulate");
pub(super) const GROUP_NORM_MOMENTS: Pair = pair!("group_norm_moments");
pub(super) const GROUP_NORM_SCALES: Pair = pair!("group_norm_scales");
pub(super) const GROUP_NORM_APPLY: Pair = pair!("group_norm_apply");
pub(super) const GROUP_NORM_WIDEN: Pair = pair!("group_norm_widen");
pub(super) const SOFTMAX_ROWS: &str = "ddt_softmax_rows";

/// By `K / 8 - 1`: 16 queries a warp, 8 warps a block.
pub(super) const ATTENTION: [&str; 16] = [
    "ddt_attention_8",
    "ddt_attention_16",
    "ddt_attention_24",
    "ddt_attention_32",
    "ddt_attention_40",
    "ddt_attention_48",
    "ddt_attention_56",
    "ddt_attention_64",
    "ddt_attention_72",
    "ddt_attention_80",
    "ddt_attention_88",
    "ddt_attention_96",
    "ddt_attention_104",
    "ddt_attention_112",
    "ddt_attention_120",
    "ddt_attention_128",
];
/// Head sizes 64 and 72: 32 queries a warp, 4 warps a block.
pub(super) const ATTENTION_WIDE: [&str; 2] = ["ddt_attention_wide_64", "ddt_attention_wide_72"];
/// Head sizes 64 and 72: 16 queries a warp, 4 warps a block, for grids that would not fill the device.
pub(super) const ATTENTION_SMALL: [&str; 2] = ["ddt_attention_small_64", "ddt_attention_small_72"];

/// All of them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let pairs = [ADD_ROWS, CLASS_CONDITION, TIMESTEP_EMBEDDING, PATCHIFY, GUIDED_STEP, ATTENTION_PLAIN];
    let images = [GATHER, POOL, COLUMNS, DOUBLE_SIZE, CHANNELS_LAST, CHANNELS_FIRST, ACCUMULATE];
    let norms = [GROUP_NORM_MOMENTS, GROUP_NORM_SCALES, GROUP_NORM_APPLY, GROUP_NORM_WIDEN];
    let pairs = GATE_NORM.into_iter().chain(SWIGLU).chain(pairs).chain(images).chain(norms).flatten();
    pairs.chain([NEXT_STEP, COPY, SOFTMAX_ROWS]).chain(ATTENTION).chain(ATTENTION_WIDE).chain(ATTENTION_SMALL)
}

/// The most dynamic shared memory that a kernel is started with, in bytes; 0 for those that take none.
#[cfg(feature = "driver")]
pub(super) fn most_shared(name: &str) -> i32 {
    let most = |head_dim| attention_shared_bytes(head_dim, usize::MAX) as i32;
    let at = |names: &[&str]| names.iter().position(|&other| other == name);
    if let Some(i) = at(&ATTENTION) {
        most(8 * (i + 1))
    } else if let Some(i) = at(&ATTENTION_WIDE).or(at(&ATTENTION_SMALL)) {
        most(64 + 8 * i)
    } else {
        0
    }
}

/// Keys and values that a block holds in shared memory at once; `cu/index.h` has the same.
fn chunk_keys(head_dim: usize) -> usize {
    if head_dim <= 80 { 256 } else { 128 }
}

/// Bytes of shared memory of an attention kernel for keys and values of `tokens`; rows are padded so that 8 of them meet no bank
/// twice.
pub(super) fn attention_shared_bytes(head_dim: usize, tokens: usize) -> usize {
    let row = if (head_dim / 8) % 2 == 1 { head_dim } else { head_dim + 8 };
    let keys = tokens.min(chunk_keys(head_dim)).next_multiple_of(64);
    2 * keys * row * size_of::<bf16>()
}
