//! Training steps of the demo's network on random data, in images a second: forward and backward pass.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure should stop")]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use ddt_benches::demo_sizes;
use ddt_flow::{flow_matching_loss, noise_batch};
use ddt_model::Ddt;

const BATCH: usize = 256;

fn main() -> Result<()> {
    let steps: usize = std::env::args().find_map(|it| it.parse().ok()).unwrap_or(10);
    let device = Device::Cpu;
    let vars = VarMap::new();
    let network = Ddt::new(&demo_sizes(), VarBuilder::from_varmap(&vars, DType::F32, &device))?.fuse()?;
    let rows: Vec<u64> = (0..BATCH as u64).collect();
    let x = noise_batch(0, &rows, (32, 4, 4), &device)?;
    let target = noise_batch(1, &rows, (32, 4, 4), &device)?;
    let t = Tensor::full(0.3f32, BATCH, &device)?;
    let labels: Vec<u32> = rows.iter().map(|it| (it % 10) as u32).collect();
    let labels = Tensor::new(labels, &device)?;
    for _ in 0..steps {
        let start = Instant::now();
        let loss = flow_matching_loss(&network.forward(&x, &t, &labels)?, &target)?;
        let forward = start.elapsed().as_secs_f64();
        let gradients = loss.backward()?;
        let both = start.elapsed().as_secs_f64();
        assert!(vars.all_vars().iter().all(|var| gradients.get(var).is_some()));
        println!(
            "forward {:.0} ms, backward {:.0} ms, {:.1} images/s",
            1e3 * forward,
            1e3 * (both - forward),
            BATCH as f64 / both
        );
    }
    Ok(())
}
