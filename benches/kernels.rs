//! Linear layers in GFLOP/s: ours, and candle's product of the same sizes.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a table on standard output; a benchmark that fails should stop"
)]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

/// The shortest of many runs, in seconds.
fn best(runs: usize, mut f: impl FnMut() -> Result<Tensor>) -> f64 {
    let once = |f: &mut dyn FnMut() -> Result<Tensor>| {
        let start = Instant::now();
        f().unwrap();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(|_| once(&mut f)).fold(f64::INFINITY, f64::min)
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    println!("{:>24} {:>10} {:>10}", "rows x in x out", "linear", "candle");
    for (rows, inputs, outputs) in [
        (4096, 256, 768),
        (4096, 256, 256),
        (4096, 256, 682),
        (4096, 682, 256),
        (256, 4096, 682),
        (2048, 768, 2304),
        (2048, 768, 768),
        (2048, 768, 2048),
        (2048, 2048, 768),
        (512, 1152, 3456),
        (512, 1152, 3072),
        (512, 3072, 1152),
        (8, 768, 4608),
    ] {
        let x = Tensor::ones((rows, inputs), DType::F32, &device)?;
        let weight = Tensor::ones((outputs, inputs), DType::F32, &device)?;
        let flops = 2e-9 * (rows * inputs * outputs) as f64;
        let runs = (50.0 / flops).clamp(10.0, 60.0) as usize;
        let mut ours = f64::INFINITY;
        let mut candle = f64::INFINITY;
        for _ in 0..4 {
            ours = ours.min(best(runs / 4, || ddt_kernels::linear(&x, &weight, None)));
            candle = candle.min(best(runs / 4, || x.matmul(&weight.t()?)));
        }
        let shape = format!("{rows} x {inputs} x {outputs}");
        println!("{shape:>24} {:>10.1} {:>10.1}", flops / ours, flops / candle);
    }
    Ok(())
}
