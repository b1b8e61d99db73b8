//! Every kernel against f64, and its rate against what the memory and the tensor cores give.
//!
//! [`verify_all`] needs any device; the figures of [`bench_all`] are only meaningful on a GPU.

use half::bf16;

use super::{Cuda, Result};

mod attention;
mod bench;
mod images;
mod sampling;
mod support;

pub use bench::{Rate, bench_all};
pub use support::Check;

/// Runs every kernel, with each of its variants, and compares it with f64.
///
/// # Errors
/// If a kernel could not be run; a wrong result is a row that has not [`passed`](Check::passed).
pub fn verify_all(cuda: &Cuda) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    sampling::verify::<bf16>(cuda, &mut checks)?;
    sampling::verify::<f32>(cuda, &mut checks)?;
    images::verify::<bf16>(cuda, &mut checks)?;
    images::verify::<f32>(cuda, &mut checks)?;
    attention::verify(cuda, &mut checks)?;
    Ok(checks)
}
