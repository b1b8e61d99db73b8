//! Speed-up of a plan, predicted from operation counts.

use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::plan::SharingPlan;

/// Operations of a network's halves for one row (an image, or its unconditional row) at one step.
///
/// In FLOP or any other common unit: only ratios are used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationCounts {
    /// The condition encoder, its embedders included.
    pub encoder: f64,
    /// The velocity decoder, including the modulations it computes from the self-condition.
    pub decoder: f64,
    /// The velocity decoder with modulations cached since the latest recompute step; equal to `decoder` for a
    /// sampler that computes them at every step.
    pub decoder_cached: f64,
}

impl OperationCounts {
    /// Refuses impossible counts.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] unless all are finite and at least 0, the whole network is above 0, and cached
    /// modulations cost no more than computed ones.
    pub fn validate(&self) -> Result<(), PlanError> {
        let Self { encoder, decoder, decoder_cached } = *self;
        let finite = encoder >= 0.0 && decoder_cached >= 0.0 && encoder + decoder < f64::INFINITY;
        let expected = if !finite {
            "finite and at least 0"
        } else if encoder + decoder <= 0.0 {
            "above 0 for the whole network"
        } else if decoder_cached > decoder {
            "no more with cached modulations than with computed ones"
        } else {
            return Ok(());
        };
        let got =
            format!("encoder {encoder}, decoder {decoder}, decoder with cached modulations {decoder_cached}");
        Err(PlanError::invalid("operation counts", expected, got))
    }
}

/// Speed-up by operations: how many times fewer a sampler needs with the plan than without sharing.
///
/// ```text
/// N (encoder + decoder) / (K (encoder + decoder) + (N - K) decoder_cached)
/// ```
///
/// The same with guidance at every step or at none. Forecasts cost one multiply-add per element and recomputed
/// state, which is not counted.
///
/// # Errors
/// Errors of [`OperationCounts::validate`].
pub fn predicted_speedup(plan: &SharingPlan, counts: &OperationCounts) -> Result<f64, PlanError> {
    predicted_speedup_guided(plan, counts, &vec![false; plan.num_steps()])
}

/// Speed-up by operations where only some steps are guided.
///
/// A guided step evaluates two rows per image, conditional and unconditional; any other step one. Without
/// sharing, each step encodes and decodes its own rows. With a plan, a recompute step encodes two rows, and
/// computes modulations for two, if a guided step combines its self-condition; every step decodes its own rows.
///
/// # Shapes
/// `guided`: `(N)`, whether each step is guided.
///
/// # Errors
/// [`PlanError::Invalid`] unless there is one flag per step; errors of [`OperationCounts::validate`].
pub fn predicted_speedup_guided(
    plan: &SharingPlan,
    counts: &OperationCounts,
    guided: &[bool],
) -> Result<f64, PlanError> {
    PlanError::check_steps("the list of guided steps", plan.num_steps(), guided.len())?;
    counts.validate()?;
    let rows = |guided: bool| if guided { 2.0 } else { 1.0 };
    // Fractions of one unshared evaluation, so that no sum overflows.
    let whole = counts.encoder + counts.decoder;
    let decode = counts.decoder_cached / whole;
    let encode = 1.0 - decode;

    let (mut unshared, mut shared) = (0.0, 0.0);
    for (first, end) in plan.segments() {
        let decoded: f64 = guided[first..end].iter().map(|&it| rows(it)).sum();
        let encoded = rows(plan.users(first).any(|step| guided[step]));
        unshared += decoded;
        shared += encoded * encode + decoded * decode;
    }
    Ok(unshared / shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ForecastOrder;

    /// Multiplications of DDT's GEMMs per sample at 256 tokens, from its sizes.
    fn ddt(num_encoder_blocks: usize, num_decoder_blocks: usize, hidden_size: usize) -> OperationCounts {
        let [c, n, mlp] = [hidden_size as f64, 256.0, (8 * hidden_size / 3) as f64];
        let patch = 16.0;
        // qkv, proj, the three GEMMs of SwiGLU, and the two of attention.
        let block = n * (3.0 * c * c + c * c + 3.0 * c * mlp + 2.0 * n * c);
        let modulation = 6.0 * c * c;
        let embed = n * patch * c;
        let decoder_cached = embed + num_decoder_blocks as f64 * block + n * c * patch;
        OperationCounts {
            encoder: embed + num_encoder_blocks as f64 * (block + modulation),
            decoder: decoder_cached + n * (num_decoder_blocks as f64 * modulation + 2.0 * c * c),
            decoder_cached,
        }
    }

    #[test]
    fn published_sizes_at_ratio_0_80() {
        let plan = SharingPlan::uniform(250, 5).unwrap();
        for (counts, kept, computed) in [(ddt(22, 6, 1152), 2.82, 2.31), (ddt(8, 4, 768), 2.34, 1.84)] {
            let speedup = predicted_speedup(&plan, &counts).unwrap();
            assert!((speedup - kept).abs() < 0.005, "{speedup}");
            let counts = OperationCounts { decoder_cached: counts.decoder, ..counts };
            let speedup = predicted_speedup(&plan, &counts).unwrap();
            assert!((speedup - computed).abs() < 0.005, "{speedup}");
        }
    }

    #[test]
    fn guidance_counts_rows() {
        let counts = OperationCounts { encoder: 6.0, decoder: 4.0, decoder_cached: 3.0 };
        let plan = SharingPlan::new(vec![0, 2], 4).unwrap();
        let all = predicted_speedup_guided(&plan, &counts, &[true; 4]).unwrap();
        assert!((all - predicted_speedup(&plan, &counts).unwrap()).abs() < 1e-15);
        assert!((all - 40.0 / 26.0).abs() < 1e-15);
        // Step 1 is guided, so step 0 encodes two rows: 2 * 7 + 3, then 2 * 3; steps 2 and 3 need one row.
        let some = predicted_speedup_guided(&plan, &counts, &[false, true, false, false]).unwrap();
        assert!((some - 50.0 / (17.0 + 6.0 + 10.0 + 3.0)).abs() < 1e-14);
        let few = predicted_speedup_guided(&plan, &counts, &[true]).unwrap_err().to_string();
        assert!(few.contains("of 4 steps, got 1"), "{few}");
        // Step 3 is guided. Reuse encodes both rows at step 2, a forecast of order 1 at step 0 too.
        let guided = [false, false, false, true];
        let reuse = predicted_speedup_guided(&plan, &counts, &guided).unwrap();
        assert!((reuse - 50.0 / (7.0 + 14.0 + 3.0 * 5.0)).abs() < 1e-14);
        let forecast = plan.with_order(ForecastOrder::Linear);
        let forecast = predicted_speedup_guided(&forecast, &counts, &guided).unwrap();
        assert!((forecast - 50.0 / (14.0 + 14.0 + 3.0 * 5.0)).abs() < 1e-14);
    }

    #[test]
    fn sharing_nothing_saves_nothing() {
        let plan = SharingPlan::every_step(7).unwrap();
        assert!((predicted_speedup(&plan, &ddt(22, 6, 1152)).unwrap() - 1.0).abs() < 1e-15);
        let huge = OperationCounts { encoder: 1e308, decoder: 5e307, decoder_cached: 5e307 };
        assert!((predicted_speedup(&plan, &huge).unwrap() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn impossible_counts_are_refused() {
        let plan = SharingPlan::every_step(2).unwrap();
        for (encoder, decoder, decoder_cached) in [
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
            let counts = OperationCounts { encoder, decoder, decoder_cached };
            let message = predicted_speedup(&plan, &counts).unwrap_err().to_string();
            assert!(message.contains("operation counts must be"), "{message}");
        }
    }
}
