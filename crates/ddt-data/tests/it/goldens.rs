//! Against what Pillow computed.

#[test]
fn center_crops() {
    ddt_parity::check("center_crop").unwrap();
}
