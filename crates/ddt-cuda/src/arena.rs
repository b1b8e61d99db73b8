//! Positions of all buffers of a batch's programs, before any memory is allocated.

use ddt_model::DdtConfig;

use crate::{
    buffer::{ALIGNMENT, Batch, Buffer, Lifetime},
    error::GpuError,
    op::Op,
    program::Programs,
};

/// Positions of all buffers in one allocation, and its size.
///
/// A buffer whose contents live from step to step has memory of its own. The others may overlap unless a program
/// needs both at the same time. The plan is a pure function of the programs, so the memory of a batch, and the
/// largest batch that fits, are known without a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaPlan {
    /// Bytes from the start, per buffer.
    offsets: Vec<usize>,
    workspace: usize,
    bytes: usize,
    weight_bytes: usize,
}

/// Scratch memory of GEMMs, as NVIDIA advises for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Scratch memory for gathered windows of convolutions: GEMMs of this size run at full rate.
#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
pub(crate) const GATHERED_BYTES: usize = 128 << 20;

/// Memory for the images that an autoencoder decodes at once, unless another bound is given: 4 GiB, which beside the
/// sampler's stays within 12.
pub const DECODER_BYTES: usize = 4 << 30;

impl ArenaPlan {
    /// Places the buffers of these programs.
    pub fn new(programs: &Programs) -> Self {
        let buffers = programs.buffers();
        let mut next = 0;
        let mut take = |bytes: usize| {
            let at = next;
            next += bytes.next_multiple_of(ALIGNMENT);
            at
        };
        let lasting = |it: &Buffer| it.lifetime == Lifetime::Run;
        let mut offsets: Vec<usize> =
            buffers.iter().map(|it| if lasting(it) { take(it.bytes()) } else { 0 }).collect();
        let workspace = take(WORKSPACE_BYTES);

        let live: Vec<Vec<Vec<bool>>> = programs.all().map(|ops| live(ops, buffers.len())).collect();
        let overlap = |a: usize, b: usize| live.iter().flatten().any(|at_op| at_op[a] && at_op[b]);
        let shared = next;
        let mut order: Vec<usize> = (0..buffers.len()).filter(|&it| !lasting(&buffers[it])).collect();
        // The large ones first: the small fill the gaps.
        order.sort_by_key(|&it| std::cmp::Reverse(buffers[it].bytes()));
        let mut end = shared;
        for (placed, &buffer) in order.iter().enumerate() {
            let mut taken: Vec<(usize, usize)> = order[..placed]
                .iter()
                .filter(|&&other| overlap(buffer, other))
                .map(|&other| (offsets[other], offsets[other] + buffers[other].bytes()))
                .collect();
            taken.sort_unstable();
            let bytes = buffers[buffer].bytes();
            let at = taken.iter().fold(shared, |at, &(from, to)| {
                if at + bytes <= from { at } else { at.max(to.next_multiple_of(ALIGNMENT)) }
            });
            offsets[buffer] = at;
            end = end.max(at + bytes);
        }
        let (_, weight_bytes) = programs.weights().places(programs.batch().precision.element());
        Self { offsets, workspace, bytes: end.next_multiple_of(ALIGNMENT), weight_bytes }
    }

    /// Bytes of the allocation for buffers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the allocation for weights.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Bytes from the start of the allocation to each buffer.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Bytes from the start of the allocation to the scratch memory of GEMMs.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// The most images, at most those of `batch`, whose buffers fit in `free` bytes beside the weights; 0 when
    /// not even one does.
    ///
    /// # Errors
    /// As [`Programs::new`].
    pub fn images_that_fit(cfg: &DdtConfig, batch: Batch, free: usize) -> Result<usize, GpuError> {
        let fits = |images: usize| {
            let programs = Programs::new(cfg, Batch { images, ..batch })?;
            Ok::<bool, GpuError>(Self::new(&programs).bytes() <= free)
        };
        if fits(batch.images)? {
            return Ok(batch.images);
        }
        // Between one that fits (none always does) and one that does not.
        let (mut fit, mut too_many) = (0, batch.images);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle)? { fit = middle } else { too_many = middle }
        }
        Ok(fit)
    }
}

/// For each operation, the buffers it touches or must not touch because a later one reads them.
fn live(ops: &[Op], buffers: usize) -> Vec<Vec<bool>> {
    let mut wanted = vec![false; buffers];
    let mut at_op = vec![Vec::new(); ops.len()];
    for (op, at) in ops.iter().zip(&mut at_op).rev() {
        let (reads, writes) = (op.reads(), op.writes());
        writes.iter().for_each(|it| wanted[it.buffer.index()] = true);
        reads.iter().for_each(|it| wanted[it.buffer.index()] = true);
        *at = wanted.clone();
        // Every write replaces the contents of its buffer, and later reads take no more than it wrote.
        for span in &writes {
            wanted[span.buffer.index()] = reads.iter().any(|it| it.buffer == span.buffer);
        }
    }
    at_op
}

#[cfg(test)]
mod tests {
    use ddt_sharing::ForecastOrder;

    use super::*;
    use crate::buffer::{Precision, Span};

    fn batch(images: usize, side: usize) -> Batch {
        let order = ForecastOrder::Reuse;
        Batch { images, height: side, width: side, precision: Precision::Bf16, order }
    }

    fn plan(cfg: &DdtConfig, batch: Batch) -> (Programs, ArenaPlan) {
        let programs = Programs::new(cfg, batch).unwrap();
        let plan = ArenaPlan::new(&programs);
        (programs, plan)
    }

    /// Replays every program and checks that nothing that is still wanted is written over.
    fn check_live_bytes(programs: &Programs, plan: &ArenaPlan) {
        let range = |it: usize| {
            let start = plan.offsets[it];
            start..start + programs.buffers()[it].bytes()
        };
        let meet = |a: usize, b: usize| {
            let (a, b) = (range(a), range(b));
            !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
        };
        let count = programs.buffers().len();
        for (a, buffer) in programs.buffers().iter().enumerate() {
            assert_eq!(plan.offsets[a] % ALIGNMENT, 0);
            assert!(range(a).end <= plan.bytes());
            if buffer.lifetime == Lifetime::Run {
                assert!((0..count).all(|b| a == b || !meet(a, b)), "{}", buffer.name);
            }
            let workspace = plan.workspace..plan.workspace + WORKSPACE_BYTES;
            assert!(
                range(a).end <= workspace.start || range(a).start >= workspace.end || range(a).is_empty()
            );
        }
        for ops in programs.all() {
            // Who last wrote a place: a buffer may be read only while it is that.
            let mut valid = vec![false; count];
            for (it, buffer) in programs.buffers().iter().enumerate() {
                valid[it] = buffer.lifetime == Lifetime::Run;
            }
            for op in ops {
                for span in op.reads() {
                    let name = &programs.buffers()[span.buffer.index()].name;
                    assert!(valid[span.buffer.index()], "{name} is read after it was written over: {op:?}");
                }
                for span in op.writes() {
                    let written = span.buffer.index();
                    (0..count)
                        .filter(|&it| it != written && meet(it, written))
                        .for_each(|it| valid[it] = false);
                    valid[written] = true;
                }
            }
        }
    }

    #[test]
    fn live_buffers_do_not_overlap() {
        let xl = DdtConfig::preset("ddt-xl2").unwrap();
        let b = DdtConfig::preset("ddt-b2").unwrap();
        let bare = DdtConfig { num_encoder_blocks: 0, ..b.clone() };
        let mute = DdtConfig { num_decoder_blocks: 0, ..b.clone() };
        for (cfg, images, side) in [(&xl, 64, 32), (&xl, 1, 64), (&b, 3, 16), (&bare, 2, 4), (&mute, 2, 4)] {
            for order in [ForecastOrder::Reuse, ForecastOrder::Quadratic] {
                let (programs, plan) = plan(cfg, Batch { order, ..batch(images, side) });
                check_live_bytes(&programs, &plan);
                let bounds = |span: Span| {
                    assert!(span.range().end <= programs.buffers()[span.buffer.index()].len, "{span:?}");
                };
                programs.all().flatten().flat_map(|op| [op.reads(), op.writes()].concat()).for_each(bounds);
            }
        }
    }

    #[test]
    fn the_published_run_takes_less_than_twelve_gibibytes() {
        let xl = DdtConfig::preset("ddt-xl2").unwrap();
        for (images, side) in [(64, 32), (32, 64)] {
            let (programs, plan) = plan(&xl, batch(images, side));
            let apart: usize = programs.buffers().iter().map(Buffer::bytes).sum();
            assert!(
                plan.bytes() + plan.weight_bytes() < 12 << 30,
                "{} {}",
                plan.bytes(),
                plan.weight_bytes()
            );
            // Sharing saves three tenths of what lives within a step.
            let lasting = programs.buffers().iter().filter(|it| it.lifetime == Lifetime::Run);
            let lasting: usize = lasting.map(Buffer::bytes).sum();
            assert!((plan.bytes() - lasting - WORKSPACE_BYTES) as f64 <= 0.7 * (apart - lasting) as f64);
            let parameters = programs.weights().num_parameters();
            assert!((2 * parameters..2 * parameters + (1 << 20)).contains(&plan.weight_bytes()));
        }
    }

    #[test]
    fn an_order_adds_its_sets_of_modulations_and_no_more() {
        let xl = DdtConfig::preset("ddt-xl2").unwrap();
        let bytes = |order| plan(&xl, Batch { order, ..batch(64, 32) }).1.bytes();
        // Six blocks and the final layer, of 128 rows of 256 tokens, in bf16.
        let set = 128 * 256 * (6 * 6 + 2) * 1152 * 2;
        let reuse = bytes(ForecastOrder::Reuse);
        assert_eq!(bytes(ForecastOrder::Linear), reuse + set);
        assert_eq!(bytes(ForecastOrder::Quadratic), reuse + 2 * set);
    }

    #[test]
    fn a_batch_without_images_is_refused() {
        let b = DdtConfig::preset("ddt-b2").unwrap();
        let message = Programs::new(&b, batch(0, 4)).unwrap_err().to_string();
        assert!(message.contains("1 to 65536") && message.ends_with("0 of 4 x 4"), "{message}");
    }

    #[test]
    fn a_batch_that_fits_is_the_largest_that_does() {
        let b = DdtConfig::preset("ddt-b2").unwrap();
        let bytes = |images| plan(&b, batch(images, 32)).1.bytes();
        let fit = |free| ArenaPlan::images_that_fit(&b, batch(64, 32), free).unwrap();
        assert_eq!(fit(usize::MAX), 64);
        assert_eq!(fit(bytes(64) - 1), 63);
        assert_eq!(fit(bytes(17)), 17);
        assert_eq!(fit(bytes(18) - 1), 17);
        assert_eq!(fit(bytes(1) - 1), 0);
    }
}
