//! Whole kernels and their launchers, with the CPU as the device.

use ddt_kernels::cuda::checks::{bench_all, verify_all};
use ddt_kernels::cuda::emulation::{self, Order};
use ddt_kernels::cuda::{Activation, AddRows, Cuda, CudaError, GateNorm};

/// The CPU in place of a GPU; without a C++ compiler, says so.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn open(order: Order) -> Option<Cuda> {
    match emulation::open(order) {
        Ok(cuda) => Some(cuda),
        Err(error @ CudaError::NoCompiler) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_kernel_is_right_whatever_thread_runs_first() {
    for order in [Order::Forwards, Order::Backwards] {
        let Some(cuda) = open(order) else { return };
        let start = std::time::Instant::now();
        let checks = verify_all(&cuda).unwrap();
        super::all_passed(&checks);
        eprintln!("{order:?}: {} checks in {:.1} s", checks.len(), start.elapsed().as_secs_f64());
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let Some(cuda) = open(Order::Forwards) else { return };
    let x = cuda.upload(&[1f32; 64]).unwrap();
    let message = |width| {
        let odd = GateNorm { x: &x, width, branch: None, modulate: None };
        cuda.gate_norm(&odd).unwrap_err().to_string()
    };
    assert!(message(12).contains("expected a width that is a multiple of 8 up to 2048, got 12"));
    assert!(message(40).contains("whole rows of the width"));
    let askew = x.sub(1..61).unwrap();
    let out = cuda.alloc::<f32>(60).unwrap();
    let sum = AddRows { x: &askew, width: 4, addend: None, activation: Activation::Silu, out: &out };
    assert!(cuda.add_rows(&sum).unwrap_err().to_string().contains("multiples of 16 bytes"));
    assert!(matches!(x.sub(60..70), Err(CudaError::Argument { .. })));
}

#[test]
fn a_graph_runs_what_was_recorded_and_only_then() {
    let Some(cuda) = open(Order::Forwards) else { return };
    let x = cuda.upload(&[2f32; 8]).unwrap();
    let double = || {
        cuda.add_rows(&AddRows {
            x: &x,
            width: 8,
            addend: Some(ddt_kernels::cuda::Rows::one(&x)),
            activation: Activation::None,
            out: &x,
        })
    };
    let graph = cuda.capture(double).unwrap();
    assert_eq!(cuda.read(&x).unwrap(), [2.0; 8]);
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(cuda.read(&x).unwrap(), [8.0; 8]);
    // Its memory is not freed while it may still run.
    let other = cuda.alloc::<f32>(8).unwrap();
    cuda.copy(&x, &other).unwrap();
    drop(x);
    graph.launch().unwrap();
    assert_eq!(cuda.read(&other).unwrap(), [8.0; 8]);
    drop(graph);
    assert!(cuda.capture(|| cuda.wait()).is_err());
}

#[test]
fn the_bench_goes_through_every_kernel() {
    let Some(cuda) = open(Order::Forwards) else { return };
    let rates = bench_all(&cuda).unwrap();
    assert!(rates.iter().all(|row| row.time_us > 0.0 && row.rate > 0.0), "{rates:?}");
    for name in [
        "copy",
        "gemm",
        "gate_norm",
        "swiglu",
        "add_rows",
        "patchify",
        "guided_step",
        "attention",
        "conv",
        "group_norm",
    ] {
        assert!(rates.iter().any(|row| row.name.starts_with(name)), "{name}: {rates:?}");
    }
}
