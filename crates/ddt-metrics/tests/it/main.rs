//! Properties of any features, against independent computations.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod distances;
mod nonsense;
mod order;

/// Against what numpy and scipy computed.
#[test]
fn goldens() {
    ddt_parity::check("metrics").unwrap();
}
