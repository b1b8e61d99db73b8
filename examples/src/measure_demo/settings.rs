//! What is measured.

use ddt_sharing::budget_for_ratio;

/// Ratios of the paper's Tab. 4.
pub const RATIOS: [f64; 6] = [0.5, 0.66, 0.75, 0.8, 0.83, 0.87];

/// Guidance of the paper's Fig. 9, and the lower ends of its intervals.
pub const SCALES: [f64; 9] = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6];
/// Lower ends of the intervals of Fig. 9.
pub const LOWER_ENDS: [f64; 4] = [0.0, 0.2, 0.3, 0.35];

/// Guidance of the sharing table: as the demo is drawn without flags.
pub const DEMO_GUIDANCE: f64 = 4.0;

/// One set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// Test photos: the floor, what nothing that is drawn can be below.
    Photos,
    /// Test photos after encoding and decoding: what the autoencoder costs.
    Reconstructions,
    /// Images of the demo.
    Drawn(Drawing),
}

/// How images are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawing {
    /// Euler steps.
    pub steps: usize,
    /// Strength of guidance, 1 for none.
    pub guidance: f64,
    /// Lower end of its interval; the upper is 1.
    pub from: f64,
    /// Where the condition encoder runs.
    pub sharing: Sharing,
}

/// Where the condition encoder runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sharing {
    /// At every step.
    None,
    /// Evenly, at so many steps.
    Uniform(usize),
    /// Where the dynamic programme says, at so many steps.
    Optimal(usize),
}

impl Setting {
    /// Its name in the file of results.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Photos => "photos".to_owned(),
            Self::Reconstructions => "reconstructions".to_owned(),
            Self::Drawn(Drawing { steps, guidance, from, sharing }) => {
                format!("steps {steps} guidance {guidance} from {from} sharing {sharing:?}")
            }
        }
    }
}

/// A drawing without sharing, of the guidance sweep.
#[must_use]
pub fn swept(steps: usize, guidance: f64, from: f64) -> Setting {
    // Guidance 1 is none, in whatever interval.
    let from = if guidance == 1.0 { 0.0 } else { from };
    Setting::Drawn(Drawing { steps, guidance, from, sharing: Sharing::None })
}

/// A drawing of the sharing table.
#[must_use]
pub fn shared(steps: usize, sharing: Sharing) -> Setting {
    Setting::Drawn(Drawing { steps, guidance: DEMO_GUIDANCE, from: 0.0, sharing })
}

/// Steps at which the encoder runs for each ratio.
#[must_use]
pub fn budgets(steps: usize) -> Vec<usize> {
    RATIOS.iter().map(|ratio| budget_for_ratio(steps, *ratio)).collect()
}

/// All of them, the floor first; none twice.
#[must_use]
pub fn settings(steps: usize, sweep_steps: usize) -> Vec<Setting> {
    let mut all = vec![Setting::Photos, Setting::Reconstructions];
    all.extend([swept(steps, 1.0, 0.0), shared(steps, Sharing::None)]);
    for budget in budgets(steps) {
        all.extend([shared(steps, Sharing::Uniform(budget)), shared(steps, Sharing::Optimal(budget))]);
    }
    for from in LOWER_ENDS {
        all.extend(SCALES.map(|guidance| swept(sweep_steps, guidance, from)));
    }
    let mut keys = std::collections::BTreeSet::new();
    all.retain(|it| keys.insert(it.key()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_there_once() {
        let all = settings(50, 25);
        // Photos, reconstructions, with and without guidance, 6 ratios twice, 4 x 8 of the sweep and one without.
        assert_eq!(all.len(), 2 + 2 + 12 + 33);
        assert_eq!(budgets(50), [25, 17, 13, 10, 9, 7]);
    }
}
