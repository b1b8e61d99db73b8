//! Sharing: guided sampling at the ratios of the paper's Tab. 4, in images a second, and the dynamic programmes that
//! plan for reuse and for forecasts, for all budgets up to one.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure should stop")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ddt_benches::{SamplingRun, demo_sizes, smooth_similarity};
use ddt_sharing::{
    ForecastOrder, ForecastPlanner, Forecasts, InnerProducts, Planner, SharingPlan, budget_for_ratio,
};

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

fn forecasts(c: &mut Criterion) {
    let mut group = c.benchmark_group("forecast-planner");
    group.sample_size(10);
    for (steps, budgets) in [(50, 25), (250, 125), (250, 250)] {
        let values = smooth_similarity(steps).unwrap().values().to_vec();
        let products = InnerProducts::from_matrix(values, steps).unwrap();
        let times: Vec<f64> = (0..=steps).map(|i| i as f64 / steps as f64).collect();
        let forecasts = Forecasts::new(&products, &times, ForecastOrder::Linear).unwrap();
        group.bench_function(BenchmarkId::new("all-budgets", format!("{steps}-steps-to-{budgets}")), |b| {
            b.iter(|| ForecastPlanner::new(&forecasts, budgets).unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, sharing, planner, forecasts);
criterion_main!(benches);
