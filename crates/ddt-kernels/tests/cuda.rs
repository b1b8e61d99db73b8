//! The GPU's kernels against f64: on a GPU, if there is one, and on the CPU in its place.
#![cfg(feature = "gpu-check")]

use ddt_kernels::cuda::checks::{Check, verify_all};

/// Fails with a list of the kernels that are wrong.
fn all_passed(checks: &[Check]) {
    assert!(!checks.is_empty());
    let wrong: Vec<String> =
        checks.iter().filter(|check| !check.passed()).map(|check| format!("{check:?}")).collect();
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), checks.len(), wrong.join("\n"));
}

/// Whole kernels and their launchers, with the CPU as the device. Needs a C++ compiler.
#[cfg(feature = "cuda-emulation")]
mod emulated {
    use ddt_kernels::cuda::checks::bench_all;
    use ddt_kernels::cuda::emulation::{Order, open};
    use ddt_kernels::cuda::{Activation, AddRows, Branch, CudaError, Forecast, GateNorm, Rows};

    use super::*;

    #[test]
    fn every_kernel_is_right_whatever_thread_runs_first() {
        for order in [Order::Forwards, Order::Backwards] {
            let cuda = open(order).unwrap();
            let start = std::time::Instant::now();
            let checks = verify_all(&cuda).unwrap();
            all_passed(&checks);
            eprintln!("{order:?}: {} checks in {:.1} s", checks.len(), start.elapsed().as_secs_f64());
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let cuda = open(Order::Forwards).unwrap();
        let x = cuda.upload(&[1f32; 64]).unwrap();
        let message = |width| {
            let odd = GateNorm { x: &x, width, branch: None, modulate: None, forecast: None };
            cuda.gate_norm(&odd).unwrap_err().to_string()
        };
        assert!(message(12).contains("expected a width that is a multiple of 8 up to 2048, got 12"));
        assert!(message(40).contains("whole rows of the width"));
        let steps = cuda.steps(1).unwrap();
        let message = |sets, stride| {
            let branch = Some(Branch { y: &x, bias: None, gate: Rows::one(&x), sum: &x });
            let forecast = Some(Forecast { sets, stride, steps: &steps });
            let odd = GateNorm { x: &x, width: 8, branch, modulate: None, forecast };
            cuda.gate_norm(&odd).unwrap_err().to_string()
        };
        assert!(message(1, 8).contains("expected 2 to 3 sets, got 1"));
        assert!(message(4, 8).contains("expected 2 to 3 sets, got 4"));
        assert!(message(2, 6).contains("first column are multiples of 4"));
        assert!(message(3, 32).contains("8 columns from 64, got 64 elements"), "{}", message(3, 32));
        assert!(message(3, usize::MAX - 7).contains("got 64 elements"));
        let askew = x.sub(1..61).unwrap();
        let out = cuda.alloc::<f32>(60).unwrap();
        let sum = AddRows { x: &askew, width: 4, addend: None, activation: Activation::Silu, out: &out };
        assert!(cuda.add_rows(&sum).unwrap_err().to_string().contains("multiples of 16 bytes"));
        assert!(matches!(x.sub(60..70), Err(CudaError::Argument { .. })));
    }

    #[test]
    fn a_graph_runs_what_was_recorded_and_only_then() {
        let cuda = open(Order::Forwards).unwrap();
        let x = cuda.upload(&[2f32; 8]).unwrap();
        let double = || {
            cuda.add_rows(&AddRows {
                x: &x,
                width: 8,
                addend: Some(Rows::one(&x)),
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
        let cuda = open(Order::Forwards).unwrap();
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
}

#[cfg(feature = "cuda")]
mod gpu {
    use ddt_kernels::cuda::{Cuda, CudaError};

    use super::*;

    #[test]
    fn every_kernel_is_right() {
        match Cuda::open(0) {
            Ok(cuda) => all_passed(&verify_all(&cuda).unwrap()),
            Err(error @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => {
                eprintln!("skipped: no CUDA device: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
