//! Times a network with random weights: the figures of a benchmark as one JSON line.

use std::{ops::ControlFlow, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use ddt_flow::{EULER, Guidance, TimeGrid, noise_batch};
use ddt_kernels::InstructionSet;
use ddt_model::{DecoderModulations, DecoupledNetwork, NetworkConfig, SampleOptions, SeededInit, sample};
use ddt_sharing::{ForecastOrder, SharingPlan};
use serde_json::json;

/// Time one call with the encoder, one without, and optionally a whole guided run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Network of two halves, such as ddt-b2, ddt-xl2-22en6de or ditdh-xl-256
    #[arg(long, default_value = "ddt-b2")]
    preset: String,
    /// Rows that the network sees; sampling draws half as many images
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Height and width of the latents [default: those that the network is for; 32 of a DDT]
    #[arg(long)]
    latent: Option<usize>,
    /// Type of the weights
    #[arg(long, default_value = "f32", value_parser = one_of(["f32", "bf16", "f16"]))]
    dtype: DType,
    /// Calls of which the median is reported, after two that are not
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Euler steps of a sampling run; 0 for none
    #[arg(long, default_value_t = 0)]
    steps: usize,
    /// Recompute the encoder every SHARE steps
    #[arg(long, default_value_t = 1)]
    share: usize,
    /// Order of the forecasts at the other steps
    #[arg(long, default_value = "0")]
    order: ForecastOrder,
    /// Time after which a sampling run is guided; 0 for all of it but its first step
    #[arg(long, default_value_t = 0.3)]
    guided_from: f64,
    /// Threads; 0 is one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Device that computes
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Reads one of these types of weights.
pub(crate) fn one_of<const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(names).try_map(|it| it.parse::<DType>())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.batch > 0 && args.runs > 0 && args.share > 0,
        "expected batch, runs and share of at least 1"
    );
    if args.device != "cpu" {
        bail!("expected device cpu, got {:?}", args.device);
    }
    ddt_kernels::retain_freed_memory();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let device = Device::Cpu;
    let cfg = NetworkConfig::preset(&args.preset)?;
    let vb = VarBuilder::from_backend(Box::new(SeededInit::new(0)), args.dtype, device.clone());
    // Weights are packed in the other types only.
    let network = if args.dtype == DType::F16 { cfg.build(vb)? } else { cfg.build_frozen(vb)? };
    let halves = network.decoupled().context("the network has no two halves")?;
    let latent = args.latent.or(cfg.grid_side.map(|it| it * cfg.sizes.patch_size)).unwrap_or(32);
    let cfg = &cfg.sizes;
    let rows: Vec<u64> = (0..args.batch as u64).collect();
    let shape = (cfg.in_channels, latent, latent);
    let x = noise_batch(0, &rows, shape, &device)?;
    let t = Tensor::full(0.3f32, args.batch, &device)?;
    let labels: Vec<u32> = rows.iter().map(|it| (it * 97 % cfg.num_classes as u64) as u32).collect();
    let y = Tensor::new(labels.as_slice(), &device)?;

    let z_t = halves.encode(&x, &t, &y)?;
    let cached = halves.modulations(&z_t)?;
    let mut row = json!({
        "peer": "ddt", "preset": args.preset, "batch": args.batch, "latent": latent, "dtype": args.dtype.as_str(),
        "compile": "no", "rotary": "real",
        "device": args.device, "threads": rayon::current_num_threads(),
        "instructions": InstructionSet::current().to_string(),
        "full_ms": median_ms(args.runs, || network.forward(&x, &t, &y))?,
        "decoder_ms": median_ms(args.runs, || halves.decode(&x, &halves.modulations(&z_t)?))?,
        "decoder_kept_ms": median_ms(args.runs, || halves.decode(&x, &cached))?,
    });
    let earlier = [0.29, 0.28].map(|t| {
        let z_t = halves.encode(&x, &Tensor::full(t as f32, args.batch, &device)?, &y)?;
        halves.modulations(&z_t)
    });
    let [before, first] = earlier;
    let ratios = forecast_cost(args.runs, halves, &x, [&cached, &before?, &first?])?;
    row["order_1_to_0"] = json!(ratios[0]);
    row["order_2_to_0"] = json!(ratios[1]);
    if args.steps > 0 {
        let images = (args.batch / 2).max(1);
        let plan = SharingPlan::uniform(args.steps, args.share)?.with_order(args.order);
        let options = SampleOptions {
            grid: TimeGrid::new(args.steps, Some(0.04), 1.0)?,
            solver: &EULER,
            guidance: Guidance::new(2.0, (args.guided_from, 1.0))?,
            plan: (args.share > 1).then_some(&plan),
        };
        let noise = noise_batch(0, &rows[..images], shape, &device)?;
        let start = Instant::now();
        sample(&*network, &noise, &labels[..images], &options, &mut |_| ControlFlow::Continue(()))?;
        row["steps"] = json!(args.steps);
        row["share"] = json!(args.share);
        row["order"] = json!(args.order);
        row["sample_ms"] = json!(round(start.elapsed().as_secs_f64() * 1e3));
    }
    if let Some(mib) = peak_memory_mib() {
        row["peak_mib"] = json!(mib);
    }
    println!("{row}");
    Ok(ExitCode::SUCCESS)
}

fn median_ms(runs: usize, call: impl Fn() -> candle_core::Result<Tensor>) -> Result<f64> {
    let once = || {
        let start = Instant::now();
        call().map(|_| start.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..2 {
        once()?;
    }
    let mut times = (0..runs).map(|_| once()).collect::<candle_core::Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let middle = runs / 2;
    Ok(round(if runs % 2 == 1 { times[middle] } else { 0.5 * (times[middle - 1] + times[middle]) }))
}

/// Extra time of a shared step of order 1, and of order 2, over one of order 0: medians over rounds of all three.
fn forecast_cost(
    runs: usize,
    halves: &dyn DecoupledNetwork,
    x: &Tensor,
    cached: [&DecoderModulations; 3],
) -> Result<[f64; 2]> {
    let weights: [&[f64]; 3] = [&[1.0], &[1.5, -0.5], &[1.9, -1.3, 0.4]];
    let mut ratios = [Vec::new(), Vec::new()];
    for round in 0..runs + 1 {
        let mut times = [0.0; 3];
        for (time, weights) in times.iter_mut().zip(weights) {
            let terms: Vec<_> = cached.into_iter().zip(weights.iter().copied()).collect();
            let start = Instant::now();
            halves.decode(x, &DecoderModulations::weighted_sum(&terms)?)?;
            *time = start.elapsed().as_secs_f64();
        }
        // The first warms up.
        if round > 0 {
            ratios.iter_mut().zip(&times[1..]).for_each(|(all, time)| all.push(time / times[0]));
        }
    }
    Ok(ratios.map(|mut it| {
        it.sort_by(f64::total_cmp);
        (it[it.len() / 2] * 1000.0).round() / 1000.0
    }))
}

/// The most memory that the process had so far, where the system says so.
fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}
