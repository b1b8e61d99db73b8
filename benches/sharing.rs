//! Guided sampling at the sharing ratios of the paper's Tab. 4, in images a second.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that fails should stop"
)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ddt_benches::{SamplingRun, demo_sizes};
use ddt_sharing::{SharingPlan, budget_for_ratio};

const STEPS: usize = 100;
const IMAGES: u32 = 4;

fn sharing(c: &mut Criterion) {
    let run = SamplingRun::new(&demo_sizes(), IMAGES, 4, STEPS).unwrap();
    let mut group = c.benchmark_group("sharing");
    group.sample_size(10).throughput(Throughput::Elements(u64::from(IMAGES)));
    for ratio in [0.0, 0.5, 0.66, 0.75, 0.8, 0.83, 0.87] {
        let plan = SharingPlan::uniform_budget(STEPS, budget_for_ratio(STEPS, ratio)).unwrap();
        let plan = (ratio > 0.0).then_some(&plan);
        group.bench_function(BenchmarkId::new("demo/cpu", ratio), |b| b.iter(|| run.run(plan).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, sharing);
criterion_main!(benches);
