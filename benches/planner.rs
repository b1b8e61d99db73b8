//! The statistic dynamic programme for all budgets up to one.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros; a benchmark that fails should stop"
)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ddt_benches::smooth_similarity;
use ddt_sharing::Planner;

fn planner(c: &mut Criterion) {
    let mut group = c.benchmark_group("planner");
    group.sample_size(20);
    for (steps, budgets) in [(50, 25), (250, 125), (1000, 200)] {
        let similarity = smooth_similarity(steps).unwrap();
        group.bench_function(BenchmarkId::new("all-budgets", format!("{steps}-steps-to-{budgets}")), |b| {
            b.iter(|| Planner::new(&similarity, budgets).unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, planner);
criterion_main!(benches);
