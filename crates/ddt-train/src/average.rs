//! Exponential moving averages of the weights.

/// One step of an average, in place: `average <- decay * average + (1 - decay) * param`.
pub fn average_step(average: &mut [f32], param: &[f32], decay: f64) {
    let (keep, new) = (decay as f32, (1.0 - decay) as f32);
    for (a, p) in average.iter_mut().zip(param) {
        *a = keep * *a + new * p;
    }
}
