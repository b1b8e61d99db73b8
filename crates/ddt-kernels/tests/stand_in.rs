//! Tests of the code that calls NVIDIA's driver and cuBLASLt, with a stand-in for both that runs kernels on the CPU.
#![cfg(all(feature = "cuda", feature = "cuda-emulation"))]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ddt_kernels::cuda::checks::verify_all;
use ddt_kernels::cuda::stand_in::{StandIn, count};
use ddt_kernels::cuda::{Activation, AddRows, Cuda, CudaError, Gemm, Rows, Slice};

/// A product, its operands on the device.
struct Product {
    input: Slice<f32>,
    weight: Slice<f32>,
    bias: Slice<f32>,
    out: Slice<f32>,
    workspace: Slice<u8>,
}

impl Product {
    fn on(cuda: &Cuda) -> Self {
        let values = |count: usize, step: f32| (0..count).map(|i| (i % 7) as f32 * step).collect::<Vec<_>>();
        Self {
            input: cuda.upload(&values(4 * 16, 0.5)).unwrap(),
            weight: cuda.upload(&values(8 * 16, 0.25)).unwrap(),
            bias: cuda.upload(&values(8, 1.0)).unwrap(),
            out: cuda.alloc(4 * 8).unwrap(),
            workspace: cuda.alloc(8192).unwrap(),
        }
    }

    fn gemm(&self) -> Gemm<'_, f32> {
        let Self { input, weight, bias, out, workspace } = self;
        Gemm { input, weight, bias: Some(bias), out, depth: 16, workspace }
    }

    fn check(&self, cuda: &Cuda) {
        let [input, weight, bias] = [&self.input, &self.weight, &self.bias].map(|it| cuda.read(it).unwrap());
        let out = cuda.read(&self.out).unwrap();
        for (i, got) in out.iter().enumerate() {
            let (row, column) = (i / 8, i % 8);
            let dot = (0..16).map(|k| input[16 * row + k] * weight[16 * column + k]).sum::<f32>();
            assert!((got - dot - bias[column]).abs() < 1e-4, "{i}: {got}");
        }
    }
}

/// `x = x + x`.
fn double(cuda: &Cuda, x: &Slice<f32>) -> Result<(), CudaError> {
    let addend = Some(Rows::one(x));
    cuda.add_rows(&AddRows { x, width: x.len(), addend, activation: Activation::None, out: x })
}

/// CUDA 12.4, which compiles the portable code: its text says how many threads and arguments a kernel takes.
#[test]
fn every_kernel_is_right_within_its_bounds_on_an_older_driver() {
    let older = StandIn { version: 12_040, blas: Some("libcublasLt.so.12"), ..StandIn::default() };
    if !older.plays("every_kernel_is_right_within_its_bounds_on_an_older_driver") {
        return;
    }
    let start = std::time::Instant::now();
    let cuda = Cuda::open(0).unwrap();
    assert_eq!(count("compiled modules").unwrap(), 1);
    let checks = verify_all(&cuda).unwrap();
    let wrong: Vec<_> = checks.iter().filter(|it| !it.passed()).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), checks.len());
    eprintln!("{} checks, {} launches in {:.1?}", checks.len(), count("launches").unwrap(), start.elapsed());
}

#[test]
fn two_devices_serve_two_threads() {
    if !StandIn::default().plays("two_devices_serve_two_threads") {
        return;
    }
    let devices = [0, 1].map(|it| Cuda::open(it).unwrap());
    // A new driver takes the machine code.
    assert_eq!(count("compiled modules").unwrap(), 0);
    thread::scope(|scope| {
        for cuda in &devices {
            scope.spawn(move || {
                let product = Product::on(cuda);
                cuda.tune_gemm(&product.gemm()).unwrap();
                let graph = cuda.capture(|| cuda.gemm(&product.gemm())).unwrap();
                cuda.write(&product.out, &[0.0; 32]).unwrap();
                graph.launch().unwrap();
                product.check(cuda);
            });
        }
    });
    let foreign = devices[1].upload(&[1f32; 8]).unwrap();
    let message = devices[0].read(&foreign).unwrap_err().to_string();
    assert!(message.contains("expected memory of this device"), "{message}");
}

#[test]
fn a_recording_has_the_work_of_its_thread_alone() {
    if !StandIn::default().plays("a_recording_has_the_work_of_its_thread_alone") {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let recorded = cuda.upload(&[1f32; 8]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = cuda.upload(&[1f32; 8]).unwrap();
            while !done.load(Ordering::Relaxed) {
                cuda.write(&other, &[1.0; 8]).unwrap();
                double(&cuda, &other).unwrap();
                assert_eq!(cuda.read(&other).unwrap(), [2.0; 8]);
            }
        });
        for _ in 0..200 {
            cuda.write(&recorded, &[1.0; 8]).unwrap();
            let graph = cuda
                .capture(|| {
                    double(&cuda, &recorded)?;
                    thread::yield_now();
                    double(&cuda, &recorded)
                })
                .unwrap();
            graph.launch().unwrap();
            assert_eq!(cuda.read(&recorded).unwrap(), [4.0; 8]);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn memory_younger_than_a_graph_is_freed_at_once() {
    if !StandIn::default().plays("memory_younger_than_a_graph_is_freed_at_once") {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let free = || cuda.memory().unwrap().0;
    let (x, out) = (cuda.upload(&[1f32; 1024]).unwrap(), cuda.alloc::<f32>(1024).unwrap());
    let graph = cuda.capture(|| double(&cuda, &x).and_then(|()| cuda.copy(&x, &out))).unwrap();
    let before = free();
    for _ in 0..3 {
        drop(cuda.alloc::<f32>(1 << 20).unwrap());
        assert_eq!(free(), before);
    }
    // A later graph keeps what it may use, an earlier one does not.
    let young = cuda.upload(&[1f32; 1024]).unwrap();
    let later = cuda.capture(|| double(&cuda, &young)).unwrap();
    drop((young, x));
    assert_eq!(free(), before - 4096);
    drop(later);
    assert_eq!(free(), before);
    graph.launch().unwrap();
    assert_eq!(cuda.read(&out).unwrap(), [2.0; 1024]);
    drop(graph);
    assert_eq!(free(), before + 4096);
}

#[test]
fn what_may_not_be_recorded_is_an_error_and_the_next_recording_works() {
    if !StandIn::default().plays("what_may_not_be_recorded_is_an_error_and_the_next_recording_works") {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let x = cuda.upload(&[1f32; 8]).unwrap();
    for error in [
        cuda.capture(|| cuda.alloc::<f32>(8).map(drop)).unwrap_err(),
        cuda.capture(|| cuda.read(&x).map(drop)).unwrap_err(),
        cuda.capture(|| cuda.wait()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("CAPTURE"), "{error}");
    }
    let graph = cuda.capture(|| double(&cuda, &x)).unwrap();
    graph.launch().unwrap();
    assert_eq!(cuda.read(&x).unwrap(), [2.0; 8]);
    let error = cuda.alloc::<u8>(81 << 30).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { total, .. } if total == 80 << 30), "{error}");
}

#[test]
fn a_shape_is_timed_once_and_its_way_is_kept() {
    if !StandIn::default().plays("a_shape_is_timed_once_and_its_way_is_kept") {
        return;
    }
    let products = |cuda: &Cuda| {
        let (before, product) = (count("products").unwrap(), Product::on(cuda));
        cuda.tune_gemm(&product.gemm()).unwrap();
        product.check(cuda);
        count("products").unwrap() - before
    };
    let cuda = Cuda::open(0).unwrap();
    // Two ways, a run of each to see whether it works, and five that are timed.
    assert_eq!(products(&cuda), 12);
    assert_eq!(products(&cuda), 1);
    // As another program finds it.
    assert_eq!(products(&Cuda::open(0).unwrap()), 1);
}

#[test]
fn ways_of_another_process_are_used_and_no_others_are_timed() {
    if !StandIn::default().plays("ways_of_another_process_are_used_and_no_others_are_timed") {
        return;
    }
    let first = Cuda::open(0).unwrap();
    first.tune_gemm(&Product::on(&first).gemm()).unwrap();
    let ways = first.ways().unwrap();
    assert_eq!(ways.lines().count(), 1, "{ways}");
    let products = |cuda: &Cuda| {
        let (before, product) = (count("products").unwrap(), Product::on(cuda));
        cuda.tune_gemm(&product.gemm()).unwrap();
        product.check(cuda);
        count("products").unwrap() - before
    };
    // Another one's table instead of the file's, and after the file's was read; then one that lacks the shape.
    let second = Cuda::open(1).unwrap();
    for ways in [ways.as_str(), "", ways.as_str()] {
        second.set_ways(ways).unwrap();
        assert_eq!(products(&second), 1);
        assert_eq!(second.ways().unwrap().trim(), ways.trim());
    }
    // The file is as it was.
    assert_eq!(Cuda::open(0).unwrap().ways().unwrap(), ways);
}

#[test]
fn nothing_is_timed_where_that_is_switched_off() {
    if !(StandIn { tune: Some("0"), ..StandIn::default() })
        .plays("nothing_is_timed_where_that_is_switched_off")
    {
        return;
    }
    let cuda = Cuda::open(0).unwrap();
    let product = Product::on(&cuda);
    cuda.tune_gemm(&product.gemm()).unwrap();
    product.check(&cuda);
    assert_eq!(count("products").unwrap(), 1);
}

/// The message of an error in opening device `ordinal`.
fn refused(ordinal: usize) -> String {
    Cuda::open(ordinal).unwrap_err().to_string()
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    if !(StandIn { version: 11_080, ..StandIn::default() }).plays("a_driver_that_is_too_old_is_named") {
        return;
    }
    let message = refused(0);
    assert!(message.contains("CUDA 12.0 or newer (R525), got one of CUDA 11.8"), "{message}");
}

#[test]
fn the_oldest_driver_takes_the_portable_code() {
    if !(StandIn { version: 12_000, ..StandIn::default() }).plays("the_oldest_driver_takes_the_portable_code")
    {
        return;
    }
    let cuda = Cuda::open(1).unwrap();
    let x = cuda.upload(&[1f32; 8]).unwrap();
    assert!(cuda.time(|| double(&cuda, &x)).unwrap() >= 0.0);
    assert_eq!(cuda.read(&x).unwrap(), [2.0; 8]);
}

#[test]
fn devices_and_libraries_that_are_not_there_are_named() {
    let bare = StandIn { blas: None, ..StandIn::default() };
    if !bare.plays("devices_and_libraries_that_are_not_there_are_named") {
        return;
    }
    assert_eq!(refused(2), "expected a CUDA device 2, got 2 devices (numbered from 0)");
    let cuda = Cuda::open(0).unwrap();
    let product = Product::on(&cuda);
    assert!(matches!(cuda.gemm(&product.gemm()), Err(CudaError::NoCublas)));
}

#[test]
fn a_driver_without_devices_is_an_error() {
    if !(StandIn { devices: 0, ..StandIn::default() }).plays("a_driver_without_devices_is_an_error") {
        return;
    }
    assert!(refused(0).contains("got 0 devices"));
}
