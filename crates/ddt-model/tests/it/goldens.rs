//! Against what PyTorch computed.

use candle_core::{DType, Device};
use ddt_model::{Ddt, ModelError};
use ddt_parity::{check, check_in, golden};

#[test]
fn the_network() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check_in("ddt_forward", dtype).unwrap();
    }
}

#[test]
fn the_decoder_only_network() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check_in("decoder_only_forward", dtype).unwrap();
    }
}

#[test]
fn sit_and_repa() {
    check("sit_forward").unwrap();
    check("repa_sit_forward").unwrap();
}

#[test]
fn sampling_runs() {
    check("ddt_sample").unwrap();
    check_in("ddt_sample", DType::BF16).unwrap();
}

#[test]
fn the_published_checkpoint_format() {
    check("checkpoint_forward").unwrap();
}

#[test]
fn a_published_checkpoint_does_not_say_its_sizes() {
    let fixture = golden("lightning_expect").unwrap();
    let path = fixture.beside("checkpoint").unwrap();
    Ddt::load(&path, Some(&fixture.sizes().unwrap()), DType::F32, &Device::Cpu).unwrap();
    let unknown = Ddt::load(&path, None, DType::F32, &Device::Cpu);
    assert!(matches!(unknown, Err(ModelError::ConfigNeeded { .. })));
}
