//! Time and peak memory of the metrics at the sizes of an evaluation, each run once: they take seconds.
//!
//! ```sh
//! cargo bench -p ddt-benches --bench metrics              # 10,000 rows on either side
//! cargo bench -p ddt-benches --bench metrics -- 50000     # as many samples
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that fails should stop")]

use std::hint::black_box;
use std::time::Instant;

use ddt_metrics::{Features, Statistics, frechet_distance, inception_score, precision_recall};

/// Numbers in a row of Inception's pool features, and in its logits.
const SIZE: usize = 2048;
const NUM_LOGITS: usize = 1008;
const NUM_REFERENCES: usize = 10_000;

fn main() {
    // Cargo passes `--bench` too.
    let num_samples = std::env::args().find_map(|it| it.parse().ok()).unwrap_or(10_000);
    println!("{} threads", rayon_threads());
    let references = features(NUM_REFERENCES, 1);
    let samples = features(num_samples, 2);
    let samples = Features::new(&samples, SIZE).unwrap();
    let references = Features::new(&references, SIZE).unwrap();

    let left = time(&format!("mean and covariance of {num_samples} rows"), || Statistics::of(samples));
    let right = time(&format!("mean and covariance of {NUM_REFERENCES} rows"), || Statistics::of(references));
    let itself = time("Frechet distance to itself", || frechet_distance(&right, &right));
    assert!(itself.distance <= 1e-6, "{}", itself.distance);
    println!("    {:e}", itself.distance);
    let distance = time("Frechet distance", || frechet_distance(&left, &right));
    println!("    {}", distance.distance);
    let overlap = time("precision and recall", || precision_recall(samples, references, 3));
    println!("    {overlap:?}");
    let logits = Features::new(&samples.values()[..10_000 * NUM_LOGITS], NUM_LOGITS).unwrap();
    time("Inception Score of 10,000 rows", || inception_score(logits, 5000));
}

fn rayon_threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn time<T, E: std::fmt::Debug>(what: &str, work: impl FnOnce() -> Result<T, E>) -> T {
    let (start, cpu) = (Instant::now(), cpu_ticks());
    let result = black_box(work().unwrap());
    let (elapsed, cpu) = (start.elapsed().as_secs_f64(), (cpu_ticks() - cpu) as f64 / 100.0);
    println!("{what}: {elapsed:.2} s, {cpu:.2} s of all cores, peak memory {}", peak_memory());
    result
}

/// Hundredths of a second that this process has computed on all cores, where the system says so; on a busy
/// machine these tell more than the clock.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the second is a name in parentheses that may have spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    fields.take(2).filter_map(|it| it.parse::<u64>().ok()).sum()
}

/// The most memory this process has had, where the system says so.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".to_owned(), |it| it.trim().to_owned())
}

/// Rows like pool features: not negative, alike within clusters, with a falling spectrum.
fn features(num_rows: usize, seed: u64) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ seed;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    // Clusters are the same for every seed.
    let centre = |cluster: usize, at: usize| ((cluster * 7919 + at * 104_729) % 997) as f32 / 997.0;
    let mut rows = Vec::with_capacity(num_rows * SIZE);
    for row in 0..num_rows {
        let common: Vec<f32> = (0..16).map(|_| uniform()).collect();
        for at in 0..SIZE {
            let shared = common[at % 16] * 40.0 / (at + 40) as f32;
            rows.push((centre(row % 1000, at) * 0.6 + shared + 0.4 * uniform()).max(0.0));
        }
    }
    rows
}
