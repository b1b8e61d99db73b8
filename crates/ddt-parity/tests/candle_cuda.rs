//! The goldens on candle's first CUDA device: a GPU, or the stand-in for NVIDIA's libraries that
//! `cargo xtask cuda --candle` makes.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{collections::BTreeMap, ops::ControlFlow};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use ddt_flow::{Guidance, SOLVER_NAMES, TimeGrid, solver_by_name};
use ddt_kernels::cuda::stand_in::count;
use ddt_model::{NetworkConfig, SampleOptions, sample};
use ddt_parity::{Comparison, Fixture, Tolerance, compare_on, goldens};

fn device() -> Device {
    Device::new_cuda(0).unwrap()
}

/// Every golden of a kind: in f32 within its tolerances, in bf16 within 2e-2.
fn check(kind: &str, dtype: DType) {
    let device = device();
    for path in goldens(kind).unwrap() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let start = std::time::Instant::now();
        let compared = compare_on(&path, dtype, &device).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        eprintln!("{name}, {dtype:?}: {:.1} s: {}", start.elapsed().as_secs_f64(), {
            let errors = compared.iter().map(|it| format!("{:.1e}", it.relative_rms));
            errors.collect::<Vec<_>>().join(" ")
        });
        for it in &compared {
            let passed = it.passed() && (dtype != DType::BF16 || it.relative_rms <= 2e-2);
            assert!(passed, "{name}, {dtype:?}: {it}");
        }
    }
}

macro_rules! in_f32 {
    ($($kind:ident),*) => {
        $(#[test]
        fn $kind() {
            check(stringify!($kind), DType::F32);
        })*
    };
}

in_f32!(
    ddt_forward,
    decoder_only_forward,
    ddt_sample,
    ddt_forecast,
    sit_forward,
    repa_sit_forward,
    ditdh_forward,
    ditdh_sample,
    vae_kl,
    tae,
    dinov2,
    inception,
    rae_encode,
    rae_decode
);

#[test]
fn networks_in_bf16() {
    for kind in ["ddt_forward", "decoder_only_forward", "ditdh_forward"] {
        check(kind, DType::BF16);
    }
}

#[test]
fn networks_in_f16() {
    check("ddt_forward", DType::F16);
}

/// What is fused is computed by this project's kernels, not by candle's.
#[test]
fn blocks_run_our_kernels() {
    check("ddt_forward", DType::F32);
    check("ddt_forward", DType::BF16);
    for kernel in ["ddt_gate_norm", "ddt_attention", "ddt_swiglu", "ddt_add_rows"] {
        assert!(count(kernel).unwrap() > 0, "{kernel} did not run");
    }
}

/// Solvers that no golden has, against the CPU.
#[test]
fn every_solver_samples_what_it_samples_on_the_cpu() {
    let path = &goldens("ddt_forward").unwrap()[0];
    let sampled_on = |device: &Device, solver: &str| {
        let fixture = Fixture::open(path).unwrap().on(device);
        let network = NetworkConfig::from(fixture.sizes().unwrap());
        let network = network.build(fixture.builder("model.").unwrap()).unwrap();
        let labels: Vec<u32> = fixture.labels("in.y").unwrap().to_vec1().unwrap();
        let solver = solver_by_name(solver).unwrap();
        let options = SampleOptions {
            grid: TimeGrid::new(4, Some(0.04), 1.0).unwrap(),
            solver: solver.as_ref(),
            guidance: Guidance::new(2.0, (0.0, 0.8)).unwrap(),
            plan: None,
        };
        let noise = fixture.tensor("in.x").unwrap();
        sample(&*network, &noise, &labels, &options, &mut |_| ControlFlow::Continue(())).unwrap().latents
    };
    for solver in SOLVER_NAMES {
        let (got, want) = (sampled_on(&device(), solver), sampled_on(&Device::Cpu, solver));
        let it = Comparison::tensors(solver, &got, &want, Tolerance::SAMPLE).unwrap();
        eprintln!("{it}");
        assert!(it.passed(), "{it}");
    }
}

/// A GPU has no backward kernels yet: gradients are candle's, through candle's operations.
#[test]
fn gradients_are_those_of_the_cpu() {
    let path = &goldens("ddt_forward").unwrap()[0];
    let gradients_on = |device: &Device| {
        let fixture = Fixture::open(path).unwrap().on(device);
        let map = VarMap::new();
        for full in fixture.checkpoint().names() {
            if let Some(name) = full.strip_prefix("model.") {
                let var = Var::from_tensor(&fixture.tensor(full).unwrap()).unwrap();
                map.data().lock().unwrap().insert(name.to_owned(), var);
            }
        }
        let vb = VarBuilder::from_varmap(&map, DType::F32, device);
        let network = NetworkConfig::from(fixture.sizes().unwrap()).build(vb).unwrap();
        let vars = map.data().lock().unwrap().clone();
        let [x, t] = ["in.x", "in.t"].map(|name| fixture.tensor(name).unwrap());
        let velocity = network.forward(&x, &t, &fixture.labels("in.y").unwrap()).unwrap();
        let store = velocity.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        vars.into_iter().filter_map(|(name, var)| Some((name, store.get(&var)?.clone()))).collect()
    };
    let (got, want): (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) =
        (gradients_on(&device()), gradients_on(&Device::Cpu));
    assert!(want.len() > 20 && got.keys().eq(want.keys()));
    for (name, want) in &want {
        let it = Comparison::tensors(name, &got[name], want, Tolerance::GRADIENT).unwrap();
        assert!(it.passed(), "{it}");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = Device::new_cuda(99).unwrap_err().to_string();
    assert!(error.contains("INVALID_DEVICE") || error.contains("invalid device"), "{error}");
}
