//! Every kernel against f64, and its rate against what the memory and the tensor cores give.
//!
//! [`verify_all`] needs any device; [`bench_all`] gives figures worth having on a GPU.

mod attention;
mod bench;
mod data;
mod elementwise;
mod images;
mod reference;
mod step;
mod verify;

pub use bench::{Rate, bench_all};
pub use verify::{Check, verify_all};
