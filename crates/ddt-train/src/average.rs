//! Exponential moving averages of the weights.

/// One step of an average, in place: `average <- decay * average + (1 - decay) * param`.
pub fn average_step(average: &mut [f32], param: &[f32], decay: f64) {
    let (keep, new) = (decay as f32, (1.0 - decay) as f32);
    for (a, p) in average.iter_mut().zip(param) {
        *a = keep * *a + new * p;
    }
}

/// The decay of step `step` (from 1): `min(decay, (1 + step) / (10 + step))`.
///
/// Differs from the paper while `step` is below about `9 / (1 - decay)`: a short run would otherwise keep
/// a share of its random start, a sixth of it after 1,800 steps at 0.999.
pub(crate) fn ramped(decay: f64, step: u64) -> f64 {
    decay.min((1.0 + step as f64) / (10.0 + step as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_forget_their_start_and_long_ones_use_the_decay() {
        assert_eq!(ramped(0.9999, 1_000_000), 0.9999);
        let start_left: f64 = (1..=1800).map(|step| ramped(0.999, step)).product();
        assert!(start_left < 1e-9, "{start_left}");
    }
}
