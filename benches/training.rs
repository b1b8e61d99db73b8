//! Training steps of the demo's network on random latents, in images a second: data, forward, backward, AdamW and one
//! average of the weights. `training [f32|bf16] [steps]`.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure should stop")]

use std::time::Instant;

use candle_core::Device;
use candle_nn::VarBuilder;
use ddt_benches::demo_sizes;
use ddt_flow::{CounterNoise, Purpose};
use ddt_model::NetworkConfig;
use ddt_train::{EpochOrder, FlowConfig, FlowMatching, LatentDataset, Precision, TrainConfig, Trainer};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let steps: usize = arguments.iter().find_map(|it| it.parse().ok()).unwrap_or(10);
    let precision = if arguments.iter().any(|it| it == "bf16") { Precision::Bf16 } else { Precision::F32 };
    ddt_kernels::retain_freed_memory();

    let cfg = TrainConfig { precision, ..TrainConfig::paper() };
    let images = 2 * cfg.batch_size;
    let latents = CounterNoise::new(0, Purpose::SampleNoise, 0, 0).normal(images * 32 * 4 * 4);
    let labels = (0..images as u32).map(|it| it % 10).collect();
    let data = LatentDataset::new(latents, labels, (32, 4, 4)).unwrap();
    let order = EpochOrder::new(cfg.seed, data.len(), false).unwrap();
    let network = NetworkConfig::from(demo_sizes());
    let build = |vb: VarBuilder| FlowMatching::new(&network, FlowConfig::PAPER, vb);
    let mut trainer = Trainer::new(cfg, data.sha256(), &Device::Cpu, build).unwrap();
    for _ in 0..steps {
        let (start, before) = (Instant::now(), trainer.images_seen());
        let report = trainer.step(|at| data.batch(&order.picks(at), &Device::Cpu)).unwrap();
        let rate = (trainer.images_seen() - before) as f64 / start.elapsed().as_secs_f64();
        println!("{precision:?}: {rate:.1} images/s, loss {}", report.loss);
    }
}
