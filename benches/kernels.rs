//! Every CPU kernel at the sizes of DDT-B/2 (8 rows of 256 tokens) and DDT-XL/2 (2 rows): GEMMs against the
//! peak of their arithmetic, passes over memory in bytes per second, and candle's GEMM for comparison.
//!
//! `cargo bench --bench kernels [-- FILTER]` prints those whose name contains FILTER.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a failure should stop")]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use ddt_kernels::{
    InstructionSet, PackedBlockWeights, PackedLinear, PackedSwiGlu, RopeTable, attention, gate_residual,
    gemm_peak_flops, layer_norm_modulate, packed_block, rms_norm_modulate, swiglu,
};

/// Rows, tokens, hidden size, heads, MLP.
const B: Sizes = Sizes { name: "B", rows: 8, tokens: 256, d: 768, heads: 12, f: 2048 };
const XL: Sizes = Sizes { name: "XL", rows: 2, tokens: 256, d: 1152, heads: 16, f: 3072 };

#[derive(Clone, Copy)]
struct Sizes {
    name: &'static str,
    rows: usize,
    tokens: usize,
    d: usize,
    heads: usize,
    f: usize,
}

struct Table {
    filter: String,
    ceiling: [f64; 2],
}

impl Table {
    /// The shortest of many runs in turn, in seconds.
    fn best(operations: f64, mut f: impl FnMut() -> Result<Tensor>) -> f64 {
        let runs = (2e11 / operations).clamp(8.0, 40.0) as usize;
        let once = |f: &mut dyn FnMut() -> Result<Tensor>| {
            let start = Instant::now();
            f().unwrap();
            start.elapsed().as_secs_f64()
        };
        (0..runs).map(|_| once(&mut f)).fold(f64::INFINITY, f64::min)
    }

    fn skips(&self, name: &str) -> bool {
        !name.contains(&self.filter)
    }

    fn product(&self, name: &str, dtype: DType, operations: f64, f: impl FnMut() -> Result<Tensor>) {
        if self.skips(name) {
            return;
        }
        let seconds = Self::best(operations, f);
        let (rate, ceiling) = (operations / seconds, self.ceiling[usize::from(dtype == DType::BF16)]);
        let (dtype, ms) = (dtype.as_str(), 1e3 * seconds);
        let share = 100.0 * rate / ceiling;
        println!("{name:44} {dtype:5} {ms:9.3} ms {:8.1} GFLOP/s {share:5.1} %", 1e-9 * rate);
    }

    fn pass(&self, name: &str, dtype: DType, elements: usize, f: impl FnMut() -> Result<Tensor>) {
        if self.skips(name) {
            return;
        }
        let bytes = (elements * dtype.size_in_bytes()) as f64;
        let seconds = Self::best(50.0 * bytes, f);
        let (dtype, ms) = (dtype.as_str(), 1e3 * seconds);
        println!("{name:44} {dtype:5} {ms:9.3} ms {:8.1} GB/s", 1e-9 * bytes / seconds);
    }
}

fn values(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.2).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

fn products(table: &Table, sizes: Sizes, dtype: DType) -> Result<()> {
    let Sizes { name, rows, tokens, d, f, .. } = sizes;
    let m = rows * tokens;
    for (what, m, k, n) in [
        ("qkv", m, d, 3 * d),
        ("proj", m, d, d),
        ("w2", m, f, d),
        ("modulation a token", m, d, 6 * d),
        ("modulation an image", rows, d, 6 * d),
    ] {
        let (x, weight) = (values(&[m, k], dtype)?, values(&[n, k], dtype)?);
        let packed = PackedLinear::new(&weight, None)?;
        let operations = 2.0 * (m * k * n) as f64;
        let shape = format!("{name} {what}, {m} x {k} x {n}");
        table.product(&format!("{shape}, packed"), dtype, operations, || packed.forward(&x));
        if dtype == DType::F32 {
            table.product(&format!("{shape}, linear"), dtype, operations, || {
                ddt_kernels::linear(&x, &weight, None)
            });
        }
        table.product(&format!("{shape}, candle"), dtype, operations, || x.matmul(&weight.t()?));
    }
    let x = values(&[m, d], dtype)?;
    let gate = PackedSwiGlu::new(&values(&[f, d], dtype)?, &values(&[f, d], dtype)?)?;
    table.product(&format!("{name} swiglu"), dtype, 4.0 * (m * d * f) as f64, || gate.forward(&x));
    Ok(())
}

fn block(table: &Table, sizes: Sizes, dtype: DType) -> Result<()> {
    let Sizes { name, rows, tokens, d, heads, f } = sizes;
    let side = tokens.isqrt();
    let k = d / heads;
    let rope = RopeTable::new(
        values(&[side * side, k / 2], DType::F32)?,
        values(&[side * side, k / 2], DType::F32)?,
    )?;
    let (q_norm, k_norm) = (values(&[k], dtype)?, values(&[k], dtype)?);
    let qkv = values(&[rows, tokens, 3 * d], dtype)?;
    let logits = (rows * heads * tokens * tokens) as f64;
    table.product(&format!("{name} attention"), dtype, 4.0 * logits * k as f64, || {
        attention(&qkv, &q_norm, &k_norm, &rope, heads, 1e-6)
    });
    let x = values(&[rows, tokens, d], dtype)?;
    let linear = |n: usize, k: usize| PackedLinear::new(&values(&[n, k], dtype)?, None);
    let weights = PackedBlockWeights {
        norm1: values(&[d], dtype)?,
        qkv: linear(3 * d, d)?,
        qk_norm: Some([q_norm.clone(), k_norm.clone()]),
        proj: linear(d, d)?,
        norm2: values(&[d], dtype)?,
        gate: PackedSwiGlu::new(&values(&[f, d], dtype)?, &values(&[f, d], dtype)?)?,
        w2: linear(d, f)?,
    };
    let operations = 2.0 * (rows * tokens * d * (4 * d + 3 * f)) as f64 + 4.0 * logits * k as f64;
    for (what, m) in [("an image", 1), ("a token", tokens)] {
        let modulation = values(&[rows, m, 6 * d], dtype)?;
        table.product(&format!("{name} block, modulation {what}"), dtype, operations, || {
            packed_block(&x, &modulation, &weights, &rope, heads, 1e-6)
        });
    }
    Ok(())
}

fn passes(table: &Table, sizes: Sizes, dtype: DType) -> Result<()> {
    let Sizes { name, rows, tokens, d, f, .. } = sizes;
    let (x, y) = (values(&[rows, tokens, d], dtype)?, values(&[rows, tokens, d], dtype)?);
    let (weight, shift_scale) = (values(&[d], dtype)?, values(&[rows, 1, 2 * d], dtype)?);
    let gate = values(&[rows, 1, d], dtype)?;
    let (a, b) = (values(&[rows, tokens, f], dtype)?, values(&[rows, tokens, f], dtype)?);
    let n = x.elem_count();
    table.pass(&format!("{name} rms_norm_modulate"), dtype, 2 * n, || {
        rms_norm_modulate(&x, &weight, &shift_scale, 1e-6)
    });
    table.pass(&format!("{name} layer_norm_modulate"), dtype, 2 * n, || {
        layer_norm_modulate(&x, &shift_scale, 1e-6)
    });
    table.pass(&format!("{name} gate_residual"), dtype, 3 * n, || gate_residual(&x, &gate, &y));
    table.pass(&format!("{name} swiglu gate alone"), dtype, 3 * a.elem_count(), || swiglu(&a, &b));
    table.pass(&format!("{name} copy"), dtype, 2 * a.elem_count(), || a.copy());
    Ok(())
}

fn main() -> Result<()> {
    ddt_kernels::retain_freed_memory();
    let filter = std::env::args().skip(1).find(|it| !it.starts_with('-')).unwrap_or_default();
    let ceiling = [gemm_peak_flops(DType::F32)?, gemm_peak_flops(DType::BF16)?];
    println!(
        "{} instructions; ceilings {:.0} GFLOP/s in f32, {:.0} in bf16",
        InstructionSet::current(),
        1e-9 * ceiling[0],
        1e-9 * ceiling[1]
    );
    let table = Table { filter, ceiling };
    for sizes in [B, XL] {
        for dtype in [DType::F32, DType::BF16] {
            products(&table, sizes, dtype)?;
            block(&table, sizes, dtype)?;
            passes(&table, sizes, dtype)?;
        }
    }
    Ok(())
}
