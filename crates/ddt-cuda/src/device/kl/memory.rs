//! Positions in memory for a number of images.

use ddt_kernels::cuda::{CudaError, Element, GroupNorm, Slice};

use super::program::{KlOp, Level, SLOTS};
use crate::{
    arena::{GATHERED_BYTES, WORKSPACE_BYTES},
    buffer::ALIGNMENT,
};

/// Queries that attention has room to score at once, or more where there is more room for gathered windows.
const QUERIES: usize = 1024;

/// Numbers that attention over one image takes beside its queries' scores: the normed image, queries, keys and
/// values.
const ATTENTION_MAPS: usize = 4;

/// Sizes of the pieces of one allocation, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) images: usize,
    /// Height and width of a latent.
    pub(super) latent: (usize, usize),
    latents: usize,
    pixels: usize,
    moments: usize,
    scratch: usize,
    slots: [usize; SLOTS],
}

impl Sizes {
    /// Sizes for a program with elements of `element` bytes.
    pub(super) fn new(
        ops: &[KlOp],
        images: usize,
        latent: (usize, usize),
        element: usize,
        channels: usize,
    ) -> Self {
        let mut it = Self {
            images,
            latent,
            latents: images.saturating_mul(latent.0 * latent.1 * channels * 4),
            pixels: 0,
            moments: 0,
            scratch: 0,
            slots: [0; SLOTS],
        };
        for op in ops {
            if let Some((slot, level)) = op.writes() {
                let bytes = images.saturating_mul(level.len(latent) * element);
                it.slots[slot] = it.slots[slot].max(bytes);
            }
            match *op {
                KlOp::Conv { at, side, .. } if side > 1 => {
                    let taps = side * side;
                    let all = images.saturating_mul(taps * at.len(latent) * element);
                    let one = taps * at.channels * element;
                    it.scratch = it.scratch.max(all.min(GATHERED_BYTES.max(one)));
                }
                KlOp::Norm { at, .. } => it.norm(at),
                KlOp::Attention { at, .. } => {
                    it.norm(at);
                    let positions = at.positions(latent);
                    let numbers = ATTENTION_MAPS * at.len(latent) + positions * positions.min(QUERIES);
                    it.scratch = it.scratch.max(4 * numbers);
                }
                KlOp::Leave { at, .. } => it.pixels = images.saturating_mul(at.positions(latent) * 3 * 4),
                KlOp::Conv { .. } | KlOp::Enter { .. } | KlOp::Add { .. } | KlOp::Upsample { .. } => {}
            }
        }
        it
    }

    fn norm(&mut self, at: Level) {
        let len = GroupNorm::<f32>::scratch_len(self.images, at.positions(self.latent), at.channels);
        self.moments = self.moments.max(4 * len);
    }

    /// Every piece, with the workspace of GEMMs.
    fn pieces(&self) -> impl Iterator<Item = usize> {
        let apart = [self.latents, self.pixels, self.moments, self.scratch, WORKSPACE_BYTES];
        apart.into_iter().chain(self.slots)
    }

    /// Bytes in all.
    pub(super) fn bytes(&self) -> usize {
        self.pieces().fold(0, |sum: usize, it| sum.saturating_add(it.next_multiple_of(ALIGNMENT)))
    }
}

/// The memory of a number of images.
#[derive(Debug)]
pub(super) struct Memory {
    /// Sizes that fit.
    pub(super) sizes: Sizes,
    /// Images that were to be decoded when it was taken: there was no room for more of them.
    pub(super) asked: usize,
    pub(super) all: Slice<u8>,
    latents: Slice<f32>,
    pixels: Slice<f32>,
    pub(super) moments: Slice<f32>,
    /// Gathered windows, or what attention keeps.
    pub(super) scratch: Slice<u8>,
    pub(super) workspace: Slice<u8>,
    slots: [Slice<u8>; SLOTS],
}

impl Memory {
    /// # Errors
    /// Memory of fewer bytes than [`Sizes::bytes`].
    pub(super) fn new(all: Slice<u8>, sizes: Sizes, asked: usize) -> Result<Self, CudaError> {
        let mut start = 0;
        let mut take = |bytes: usize| {
            let piece = all.sub(start..start + bytes);
            start += bytes.next_multiple_of(ALIGNMENT);
            piece
        };
        Ok(Self {
            sizes,
            asked,
            all: all.clone(),
            latents: take(sizes.latents)?.cast()?,
            pixels: take(sizes.pixels)?.cast()?,
            moments: take(sizes.moments)?.cast()?,
            scratch: take(sizes.scratch)?,
            workspace: take(WORKSPACE_BYTES)?,
            slots: [take(sizes.slots[0])?, take(sizes.slots[1])?, take(sizes.slots[2])?],
        })
    }
}

/// The images that are decoded at once, as many as memory allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) memory: &'a Memory,
    pub(super) images: usize,
}

impl Part<'_> {
    /// The images in a buffer.
    pub(super) fn slot<T: Element>(&self, slot: usize, at: Level) -> Result<Slice<T>, CudaError> {
        let bytes = self.images * at.len(self.memory.sizes.latent) * size_of::<T>();
        self.memory.slots[slot].sub(0..bytes)?.cast()
    }

    /// (B, C, H, W).
    pub(super) fn latents(&self, channels: usize) -> Result<Slice<f32>, CudaError> {
        let (height, width) = self.memory.sizes.latent;
        self.memory.latents.sub(0..self.images * channels * height * width)
    }

    /// (B, 3, H, W), so many pixels for each latent position.
    pub(super) fn pixels(&self, each: usize) -> Result<Slice<f32>, CudaError> {
        let (height, width) = self.memory.sizes.latent;
        self.memory.pixels.sub(0..self.images * 3 * height * width * each)
    }
}
