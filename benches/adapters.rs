//! Milliseconds of the frozen networks with random weights: `NETWORK-SIDE-TYPE`, such as `kl-decode-256-bf16`.
//!
//! `cargo bench --bench adapters -- ROW..` runs each row three times; without rows, it reads one at a time from
//! standard input, runs it once and answers `ROW MS`, which is how `peers/adapters.py` alternates with PyTorch.

#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "a line on standard output; a benchmark that fails should stop"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use ddt_adapters::{
    Decode, DinoV2, DinoV2Config, Encode, Inception, KlConfig, KlDecoder, KlEncoder, RaeDecoder,
    RaeDecoderConfig,
};
use ddt_flow::{CounterNoise, Purpose};

type Run = Box<dyn Fn() -> Result<()>>;

fn main() -> Result<()> {
    ddt_kernels::retain_freed_memory();
    let rows: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let mut runs = BTreeMap::new();
    for row in &rows {
        for _ in 0..3 {
            time(&mut runs, row)?;
        }
    }
    if rows.is_empty() {
        for row in std::io::stdin().lines() {
            time(&mut runs, row?.trim())?;
        }
    }
    Ok(())
}

/// Runs a row once, after once for warming up at its first time.
fn time(runs: &mut BTreeMap<String, Run>, row: &str) -> Result<()> {
    if !runs.contains_key(row) {
        let run = network(row)?;
        run()?;
        runs.insert(row.to_owned(), run);
    }
    let start = Instant::now();
    runs.get(row).map_or(Ok(()), |run| run())?;
    println!("{row} {:.1}", 1e3 * start.elapsed().as_secs_f64());
    Ok(())
}

fn network(row: &str) -> Result<Run> {
    let (name, dtype) = row.rsplit_once('-').unwrap_or_default();
    let (name, side) = name.rsplit_once('-').unwrap_or_default();
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let side: usize = side.parse().map_err(candle_core::Error::wrap)?;
    let device = Device::Cpu;
    let vb = VarBuilder::from_backend(Box::new(Random), dtype, device.clone());
    let images = if side > 256 { 1 } else { 2 };
    let pixels = |images| uniform(1.0, &(images, 3, side, side).into(), &device);
    Ok(match name {
        "kl-decode" => {
            let decoder = KlDecoder::new(&KlConfig::sd_vae_ft_ema(), vb)?;
            let latents = uniform(0.3, &(images, 4, side / 8, side / 8).into(), &device)?;
            Box::new(move || decoder.decode(&latents).map(drop))
        }
        "kl-encode" => {
            let (encoder, pixels) = (KlEncoder::new(&KlConfig::sd_vae_ft_ema(), vb)?, pixels(images)?);
            Box::new(move || encoder.encode(&pixels).map(drop))
        }
        "dinov2-b" => {
            let network = DinoV2::new(&DinoV2Config::vit_b().with_registers(), vb)?;
            let pixels = pixels(8)?;
            Box::new(move || network.forward(&pixels).map(drop))
        }
        "rae-xl" => {
            let cfg = RaeDecoderConfig::vit_xl().with_grid(side / 16);
            let latents = uniform(1.0, &(images, cfg.latent_channels, cfg.grid, cfg.grid).into(), &device)?;
            let decoder = RaeDecoder::new(&cfg, None, vb)?;
            Box::new(move || decoder.decode(&latents).map(drop))
        }
        "inception" => {
            let (network, pixels) = (Inception::new(vb)?, pixels(16)?);
            Box::new(move || network.forward(&pixels).map(drop))
        }
        _ => bail!(
            "expected kl-decode, kl-encode, dinov2-b, rae-xl or inception, a side and f32 or bf16, got {row}"
        ),
    })
}

/// Numbers in [-bound, bound), the same for a shape.
fn uniform(bound: f64, shape: &Shape, device: &Device) -> Result<Tensor> {
    let random = CounterNoise::new(0, Purpose::Init, 0, 0).uniform(shape.elem_count());
    let values: Vec<f32> = random.into_iter().map(|it| (bound * (2.0 * it - 1.0)) as f32).collect();
    Tensor::from_vec(values, shape, device)
}

/// Answers any name with numbers that keep activations near 1.
struct Random;

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let values = match *shape.dims() {
            [_] if name.ends_with("weight") || name.ends_with("var") => {
                Tensor::ones(shape, DType::F32, device)?
            }
            [_] => uniform(0.1, &shape, device)?,
            ref dims => {
                uniform((3.0 / dims.iter().skip(1).product::<usize>() as f64).sqrt(), &shape, device)?
            }
        };
        values.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("expected a shape for {name}, got none")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.ends_with("query.weight")
    }
}
