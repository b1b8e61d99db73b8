//! Whole guided sampling runs without sharing, in images a second.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure should stop")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ddt_benches::{SamplingRun, demo_sizes};
use ddt_model::DdtConfig;

fn sampler(c: &mut Criterion) {
    let mut group = c.benchmark_group("sampler");
    group.sample_size(10);
    for images in [1, 8] {
        let run = SamplingRun::new(&demo_sizes(), images, 4, 50).unwrap();
        group.throughput(Throughput::Elements(u64::from(images)));
        group.bench_function(BenchmarkId::new("demo/cpu/50-steps", images), |b| {
            b.iter(|| run.run(None).unwrap())
        });
    }
    // Two steps, one of them guided: a step of each kind.
    let run = SamplingRun::new(&DdtConfig::preset("ddt-b2").unwrap(), 1, 32, 2).unwrap();
    group.throughput(Throughput::Elements(1));
    group.bench_function("ddt-b2/cpu/2-steps/1", |b| b.iter(|| run.run(None).unwrap()));
    group.finish();
}

criterion_group!(benches, sampler);
criterion_main!(benches);
