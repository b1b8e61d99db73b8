//! Against what PyTorch computed.

#[test]
fn optimiser_and_average() {
    ddt_parity::check("adamw_ema").unwrap();
}

#[test]
fn loss_with_alignment_and_every_gradient() {
    ddt_parity::check("repa_step").unwrap();
}
