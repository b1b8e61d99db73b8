//! What a plan saves, counted in operations.

use serde::{Deserialize, Serialize};

use crate::plan::check_step_count;
use crate::{PlanError, SharingPlan};

/// Operations of a network's parts for one row (an image, or its "no class" half) at one step.
///
/// In FLOP, or any other unit as long as it is the same for all: only ratios are used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationCounts {
    /// The condition encoder, its embedders included.
    pub encoder: f64,
    /// The velocity decoder, with the modulations that it derives from the self-condition.
    pub decoder: f64,
    /// The velocity decoder with the modulations kept from the latest recompute step.
    ///
    /// Equal to `decoder` for a sampler that computes them at every step.
    pub decoder_kept: f64,
}

impl OperationCounts {
    /// Checks that the counts are some network's.
    ///
    /// # Errors
    ///
    /// [`PlanError::OperationCounts`] unless all are finite and at least 0, the whole network is above 0,
    /// and keeping modulations costs no more than computing them.
    pub fn validate(&self) -> Result<(), PlanError> {
        let Self { encoder, decoder, decoder_kept } = *self;
        let refuse = |what| Err(PlanError::OperationCounts { what, encoder, decoder, decoder_kept });
        if !(encoder >= 0.0 && decoder_kept >= 0.0 && encoder + decoder < f64::INFINITY) {
            return refuse("operation counts must be finite and at least 0");
        }
        if encoder + decoder <= 0.0 {
            return refuse("a network must have operations");
        }
        if decoder_kept > decoder {
            return refuse("keeping modulations must not cost more than computing them");
        }
        Ok(())
    }
}

/// Returns how many times fewer operations a sampler needs with the plan than without sharing.
///
/// ```text
/// N (encoder + decoder) / (K (encoder + decoder) + (N - K) decoder_kept)
/// ```
///
/// The same with guidance at every step, or at none.
///
/// # Errors
///
/// Errors of [`OperationCounts::validate`].
pub fn predicted_speedup(plan: &SharingPlan, counts: &OperationCounts) -> Result<f64, PlanError> {
    predicted_speedup_guided(plan, counts, &vec![false; plan.num_steps()])
}

/// Returns the same where only some steps are guided.
///
/// A guided step evaluates two rows an image, the class and "no class"; any other step one. Without sharing,
/// each step encodes and decodes its own rows. With it, a recompute step encodes, and derives modulations
/// for, two rows if any step up to the next recompute is guided; every step decodes its own rows.
///
/// # Shapes
///
/// `guided`: `(N)`, whether each step is guided.
///
/// # Errors
///
/// [`PlanError::StepCount`] unless there is one flag a step; errors of [`OperationCounts::validate`].
pub fn predicted_speedup_guided(
    plan: &SharingPlan,
    counts: &OperationCounts,
    guided: &[bool],
) -> Result<f64, PlanError> {
    check_step_count("the list of guided steps", plan.num_steps(), guided.len())?;
    counts.validate()?;
    let rows = |guided: bool| if guided { 2.0 } else { 1.0 };
    // Shares of one unshared evaluation, so that no sum overflows.
    let whole = counts.encoder + counts.decoder;
    let decode = counts.decoder_kept / whole;
    let encode = 1.0 - decode;

    let (mut unshared, mut shared) = (0.0, 0.0);
    for (first, end) in plan.segments() {
        let segment = &guided[first..end];
        let decoded: f64 = segment.iter().map(|&it| rows(it)).sum();
        unshared += decoded;
        shared += rows(segment.contains(&true)) * encode + decoded * decode;
    }
    Ok(unshared / shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplications of DDT's matrix products a row at 256 tokens, from its sizes.
    fn ddt(num_encoder_blocks: usize, num_decoder_blocks: usize, hidden_size: usize) -> OperationCounts {
        let [c, n, mlp] = [hidden_size as f64, 256.0, (8 * hidden_size / 3) as f64];
        let patch = 16.0;
        // qkv, proj, the three products of SwiGLU, and the two of attention.
        let block = n * (3.0 * c * c + c * c + 3.0 * c * mlp + 2.0 * n * c);
        let modulation = 6.0 * c * c;
        let embed = n * patch * c;
        let decoder_kept = embed + num_decoder_blocks as f64 * block + n * c * patch;
        OperationCounts {
            encoder: embed + num_encoder_blocks as f64 * (block + modulation),
            decoder: decoder_kept + n * (num_decoder_blocks as f64 * modulation + 2.0 * c * c),
            decoder_kept,
        }
    }

    #[test]
    fn published_sizes_at_ratio_0_80() {
        let plan = SharingPlan::uniform(250, 5).unwrap();
        for (counts, kept, computed) in [(ddt(22, 6, 1152), 2.82, 2.31), (ddt(8, 4, 768), 2.34, 1.84)] {
            let speedup = predicted_speedup(&plan, &counts).unwrap();
            assert!((speedup - kept).abs() < 0.005, "{speedup}");
            let counts = OperationCounts { decoder_kept: counts.decoder, ..counts };
            let speedup = predicted_speedup(&plan, &counts).unwrap();
            assert!((speedup - computed).abs() < 0.005, "{speedup}");
        }
    }

    #[test]
    fn guidance_counts_rows() {
        let counts = OperationCounts { encoder: 6.0, decoder: 4.0, decoder_kept: 3.0 };
        let plan = SharingPlan::new(vec![0, 2], 4).unwrap();
        let all = predicted_speedup_guided(&plan, &counts, &[true; 4]).unwrap();
        assert!((all - predicted_speedup(&plan, &counts).unwrap()).abs() < 1e-15);
        assert!((all - 40.0 / 26.0).abs() < 1e-15);
        // Step 1 is guided, so step 0 encodes both halves: 2 * 7 + 3, then 2 * 3; steps 2 and 3 need one row.
        let some = predicted_speedup_guided(&plan, &counts, &[false, true, false, false]).unwrap();
        assert!((some - 50.0 / (17.0 + 6.0 + 10.0 + 3.0)).abs() < 1e-14);
        let few = predicted_speedup_guided(&plan, &counts, &[true]);
        assert!(matches!(few, Err(PlanError::StepCount { expected: 4, got: 1, .. })));
    }

    #[test]
    fn sharing_nothing_saves_nothing() {
        let plan = SharingPlan::every_step(7).unwrap();
        assert!((predicted_speedup(&plan, &ddt(22, 6, 1152)).unwrap() - 1.0).abs() < 1e-15);
        let huge = OperationCounts { encoder: 1e308, decoder: 5e307, decoder_kept: 5e307 };
        assert!((predicted_speedup(&plan, &huge).unwrap() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn impossible_counts_are_refused() {
        let plan = SharingPlan::every_step(2).unwrap();
        for (encoder, decoder, decoder_kept) in [
            (-1.0, 4.0, 3.0),
            (1.0, 4.0, 5.0),
            (1.0, 4.0, -1.0),
            (0.0, 0.0, 0.0),
            (f64::NAN, 4.0, 3.0),
            (1.0, f64::NAN, 3.0),
            (1.0, 4.0, f64::NAN),
            (f64::INFINITY, 4.0, 3.0),
            (1e308, 1e308, 1e308),
        ] {
            let counts = OperationCounts { encoder, decoder, decoder_kept };
            assert!(matches!(predicted_speedup(&plan, &counts), Err(PlanError::OperationCounts { .. })));
        }
    }
}
