//! Against what PyTorch computed.

use candle_core::{DType, Device};
use ddt_model::{Ddt, ModelError, VelocityNetwork};
use ddt_parity::{Fixture, check, check_in, compare_halves, golden, goldens};

#[test]
fn the_network_as_it_is_sampled_from() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        check_in("ddt_forward", dtype).unwrap();
    }
}

#[test]
fn every_form_of_the_network() {
    let check = |fixture: &Fixture, form: &str, network: &dyn VelocityNetwork| {
        for it in compare_halves(fixture, network.decoupled().unwrap()).unwrap() {
            assert!(it.passed(), "{}, {form}: {it}", fixture.path().display());
        }
    };
    for path in goldens("ddt_forward").unwrap() {
        let fixture = Fixture::open(&path).unwrap();
        let ddt = Ddt::new(&fixture.sizes().unwrap(), fixture.builder("model.").unwrap()).unwrap();
        check(&fixture, "definition", &ddt);
        check(&fixture, "fused", &ddt.clone().fuse().unwrap());
        check(&fixture, "frozen", &ddt.freeze().unwrap());
        let fixture = fixture.in_dtype(DType::BF16);
        let ddt = Ddt::new(&fixture.sizes().unwrap(), fixture.builder("model.").unwrap()).unwrap();
        check(&fixture, "definition in bf16", &ddt);
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
fn dit_dh_called_and_sampled_from() {
    for kind in ["ditdh_forward", "ditdh_sample"] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            check_in(kind, dtype).unwrap();
        }
    }
}

#[test]
fn sampling_runs() {
    check("ddt_sample").unwrap();
    check_in("ddt_sample", DType::BF16).unwrap();
}

#[test]
fn sampling_runs_with_forecasts() {
    check("ddt_forecast").unwrap();
    check_in("ddt_forecast", DType::BF16).unwrap();
}

#[test]
fn the_published_checkpoint_format() {
    check("checkpoint_forward").unwrap();
}

#[test]
fn a_published_checkpoint_does_not_state_its_sizes() {
    let fixture = golden("lightning_expect").unwrap();
    let path = fixture.beside("checkpoint").unwrap();
    Ddt::load(&path, Some(&fixture.sizes().unwrap()), DType::F32, &Device::Cpu).unwrap();
    match Ddt::load(&path, None, DType::F32, &Device::Cpu) {
        Err(ModelError::File { reason, .. }) => assert!(reason.contains("preset"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
