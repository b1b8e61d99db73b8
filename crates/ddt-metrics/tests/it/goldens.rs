//! Against what numpy and scipy computed.

#[test]
fn metrics() {
    ddt_parity::check("metrics").unwrap();
}
