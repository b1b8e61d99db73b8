//! How fast the kernels are.

use half::bf16;

use super::support::Random;
use crate::cuda::attention::Tiling;
use crate::cuda::launch::{Arguments, Launch};
use crate::cuda::{
    Activation, AddRows, Attention, Branch, Conv, ConvBy, Cuda, CudaError, Element, Forecast, GateNorm, Gemm,
    Grid, GroupNorm, GuidedStep, MAX_SETS, Modulate, Norm, Result, Rows, Slice, SwiGlu, Window, kernels,
};

/// A kernel's time and rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Rate {
    /// The kernel.
    pub name: String,
    /// The sizes it ran on.
    pub shape: String,
    /// The median time of a run, in microseconds.
    pub time_us: f64,
    /// Work per second, in `unit`: bytes that must be read and written, or operations of the GEMMs.
    pub rate: f64,
    /// "GB/s" or "TFLOP/s".
    pub unit: &'static str,
    /// The rate of a plain copy or a large GEMM just before, in `unit`; 0 if not measured.
    pub peak: f64,
}

/// Sizes of the networks that are timed.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    tokens: usize,
    width: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
    /// Side of the images that the decoder is timed on, a multiple of 8.
    image: usize,
    /// Elements of the copy, and the side of the large GEMM.
    copied: usize,
    side: usize,
    runs: usize,
}

/// DDT-XL/2, 64 images of 256 px with both batches of guidance.
const XL_2: Sizes = Sizes {
    rows: 128,
    tokens: 256,
    width: 1152,
    hidden: 3072,
    heads: 16,
    head_dim: 72,
    image: 256,
    copied: 1 << 28,
    side: 8192,
    runs: 20,
};
/// As little as goes through everything: the CPU in a GPU's place is not worth timing.
const TINY: Sizes = Sizes {
    rows: 2,
    tokens: 16,
    width: 144,
    hidden: 64,
    heads: 2,
    head_dim: 72,
    image: 8,
    copied: 4096,
    side: 32,
    runs: 1,
};

/// Times every kernel in bf16 over the shapes of DDT-XL/2 at 256 px, 128 rows; its attention at 512 px, 32
/// rows, too, and layers of the autoencoder's decoder. On the CPU in a GPU's place sizes are tiny and times say nothing.
///
/// Products are left out where cuBLASLt is not.
///
/// # Errors
/// If memory is out (it takes about 4 GiB) or a kernel fails.
pub fn bench_all(cuda: &Cuda) -> Result<Vec<Rate>> {
    let sizes = if cuda.is_emulated() { TINY } else { XL_2 };
    let mut bench = Bench { cuda, sizes, rates: Vec::new(), memory: 0.0, products: 0.0 };
    bench.copy()?;
    match bench.gemm("gemm, peak", (sizes.side, sizes.side, sizes.side)) {
        Err(CudaError::NoCublas) => {}
        outcome => {
            bench.products = outcome?;
            bench.gemms()?;
        }
    }
    bench.gate_norms()?;
    bench.elementwise()?;
    bench.steps()?;
    bench.attention((sizes.rows, sizes.tokens))?;
    bench.attention((sizes.rows / 4 + 1, 4 * sizes.tokens))?;
    bench.images()?;
    Ok(bench.rates)
}

struct Bench<'a> {
    cuda: &'a Cuda,
    sizes: Sizes,
    rates: Vec<Rate>,
    /// Ceilings, GB/s and TFLOP/s.
    memory: f64,
    products: f64,
}

impl Bench<'_> {
    /// Times `work` and adds a row; `amount` is bytes or operations. Returns the rate.
    fn row(
        &mut self,
        (name, shape): (&str, String),
        (unit, amount): (&'static str, usize),
        work: impl Fn() -> Result<()>,
    ) -> Result<f64> {
        work()?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let runs = self.sizes.runs;
            times.push(self.cuda.time(|| (0..runs).try_for_each(|_| work()))? * 1e3 / runs as f64);
        }
        times.sort_by(f64::total_cmp);
        let time_us = times[times.len() / 2];
        let (per_us, peak) = if unit == "GB/s" { (1e3, self.memory) } else { (1e6, self.products) };
        let rate = amount as f64 / time_us.max(1e-9) / per_us;
        self.rates.push(Rate { name: name.into(), shape, time_us, rate, unit, peak });
        Ok(rate)
    }

    /// Random values: a piece is made on the host and repeated.
    fn filled(&self, len: usize) -> Result<Slice<bf16>> {
        let piece = Random::new(len as u64).data::<bf16>(self.cuda, len.min(1 << 18), (0.0, 1.0))?.device;
        let all = self.cuda.alloc(len)?;
        for start in (0..len).step_by(piece.len()) {
            let end = len.min(start + piece.len());
            self.cuda.copy(&piece.sub(0..end - start)?, &all.sub(start..end)?)?;
        }
        Ok(all)
    }

    fn copy(&mut self) -> Result<()> {
        let (cuda, count) = (self.cuda, self.sizes.copied);
        let (from, to) = (self.filled(count)?, cuda.alloc::<bf16>(count)?);
        let mut arguments = Arguments::default();
        arguments.address(from.address()).address(to.address()).u32((count / 8) as u32);
        let launch = Launch {
            kernel: kernels::COPY,
            grid: (16 * cuda.multiprocessors() as u32, 1, 1),
            block: 256,
            shared: 0,
            arguments,
        };
        let shape = format!("{} bytes", bytes::<bf16>(count));
        self.memory =
            self.row(("copy, peak", shape), ("GB/s", 2 * bytes::<bf16>(count)), || cuda.launch(&launch))?;
        Ok(())
    }

    fn gemm(&mut self, name: &str, (m, n, k): (usize, usize, usize)) -> Result<f64> {
        let cuda = self.cuda;
        let (input, weight, bias) = (self.filled(m * k)?, self.filled(n * k)?, self.filled(n)?);
        let (out, workspace) = (cuda.alloc(m * n)?, cuda.alloc(32 << 20)?);
        let product = Gemm {
            input: &input,
            weight: &weight,
            bias: Some(&bias),
            out: &out,
            depth: k,
            workspace: &workspace,
        };
        cuda.tune_gemm(&product)?;
        self.row((name, format!("{m} x {n} x {k}")), ("TFLOP/s", 2 * m * n * k), || cuda.gemm(&product))
    }

    fn gemms(&mut self) -> Result<()> {
        let Sizes { rows, tokens, width, hidden, .. } = self.sizes;
        let shapes = [
            ("gemm, qkv", 3 * width, width),
            ("gemm, attention's projection", width, width),
            ("gemm, w1 and w3", 2 * hidden, width),
            ("gemm, w2", width, hidden),
            ("gemm, modulation", 6 * width, width),
        ];
        for (name, n, k) in shapes {
            self.gemm(name, (rows * tokens, n, k))?;
        }
        Ok(())
    }

    fn gate_norms(&mut self) -> Result<()> {
        let Sizes { rows, tokens, width, .. } = self.sizes;
        let (cuda, count) = (self.cuda, rows * tokens);
        let len = count * width;
        let (x, y, out) = (self.filled(len)?, self.filled(len)?, cuda.alloc(len)?);
        let (weight, modulation) = (self.filled(width)?, self.filled(MAX_SETS * 6 * len)?);
        let steps = cuda.steps(1)?;
        cuda.write_steps(&steps, &[[0.5, 1e-6, 2.0, 4.0, 0.25, -1.5, 2.25]])?;
        let shape = |per: &str| format!("{rows} x {tokens} x {width}, a modulation {per}");
        let one = bytes::<bf16>(len);
        for (per, tokens_per_row, read) in [("an image", tokens, 0), ("a token", 1, 1)] {
            let part =
                |nth| Rows { data: &modulation, stride: 6 * width, first: nth * width, tokens_per_row };
            let branch = Branch { y: &y, bias: Some(&weight), gate: part(2), sum: &x };
            let modulate =
                Modulate { norm: Norm::Rms(&weight), shift: part(3), scale: part(4), eps: 1e-6, out: &out };
            let layer = Modulate { norm: Norm::Layer, ..modulate };
            let cases = [
                ("gate_norm, gate and rms", Some(branch), Some(modulate), 4 + 3 * read),
                ("gate_norm, rms", None, Some(modulate), 2 + 2 * read),
                ("gate_norm, gate and layer", Some(branch), Some(layer), 4 + 3 * read),
                ("gate_norm, gate", Some(branch), None, 3 + read),
            ];
            for (name, branch, modulate, times) in cases {
                self.row((name, shape(per)), ("GB/s", times * one), || {
                    cuda.gate_norm(&GateNorm { x: &x, width, branch, modulate, forecast: None })
                })?;
            }
            for sets in 2..=MAX_SETS {
                let forecast = Some(Forecast { sets, stride: 6 * len, steps: &steps });
                let name = format!("gate_norm, gate and rms, {sets} sets");
                let (branch, modulate) = (Some(branch), Some(modulate));
                self.row((&name, shape(per)), ("GB/s", (4 + 3 * sets * read) * one), || {
                    cuda.gate_norm(&GateNorm { x: &x, width, branch, modulate, forecast })
                })?;
            }
        }
        Ok(())
    }

    fn elementwise(&mut self) -> Result<()> {
        let Sizes { rows, tokens, width, hidden, .. } = self.sizes;
        let (cuda, count) = (self.cuda, rows * tokens);
        let (ab, out) = (self.filled(2 * count * hidden)?, cuda.alloc(count * hidden)?);
        let shape = format!("{rows} x {tokens} x {hidden}");
        self.row(("swiglu", shape), ("GB/s", 3 * bytes::<bf16>(count * hidden)), || {
            cuda.swiglu(&SwiGlu { ab: &ab, hidden, out: &out })
        })?;
        let (x, addend) = (self.filled(count * width)?, self.filled(width)?);
        let out = cuda.alloc(count * width)?;
        let shape = format!("{rows} x {tokens} x {width}");
        self.row(("add_rows, silu", shape), ("GB/s", 2 * bytes::<bf16>(count * width)), || {
            cuda.add_rows(&AddRows {
                x: &x,
                width,
                addend: Some(Rows::one(&addend)),
                activation: Activation::Silu,
                out: &out,
            })
        })?;
        Ok(())
    }

    fn steps(&mut self) -> Result<()> {
        let cuda = self.cuda;
        let side = 2 * self.sizes.tokens.isqrt();
        let grid = Grid { images: self.sizes.rows / 2, channels: 4, height: side, width: side, patch: 2 };
        let x = cuda.upload(&vec![0.5f32; grid.len()])?;
        let tokens = self.filled(2 * grid.len())?;
        let steps = cuda.steps(1)?;
        cuda.write_steps(&steps, &[[0.5, 1e-6, 2.0, 4.0, 0.0, 0.0, 0.0]])?;
        let traffic = bytes::<f32>(grid.len()) + bytes::<bf16>(tokens.len());
        let shape = format!("{grid:?}");
        self.row(("patchify", shape.clone()), ("GB/s", traffic), || cuda.patchify(&x, grid, &tokens))?;
        let traffic = traffic + bytes::<f32>(grid.len());
        self.row(("guided_step", shape), ("GB/s", traffic), || {
            cuda.guided_step(&GuidedStep {
                tokens: &tokens,
                grid,
                steps: &steps,
                velocity: None,
                x: Some(&x),
            })
        })?;
        Ok(())
    }

    /// The decoder's largest layers, for eight images.
    fn images(&mut self) -> Result<()> {
        let cuda = self.cuda;
        let workspace = cuda.alloc(32 << 20)?;
        let scratch = cuda.alloc(128 << 20)?;
        for (parts, channels, out_channels) in [(8, 512, 512), (4, 512, 512), (2, 256, 256), (1, 256, 128)] {
            let side = self.sizes.image / parts;
            let window = Window::SAME;
            let (images, positions) = (8, 8 * side * side);
            let (input, weight) =
                (self.filled(positions * channels)?, self.filled(window.taps() * channels * out_channels)?);
            let (bias, out) = (self.filled(out_channels)?, cuda.alloc(positions * out_channels)?);
            let conv = Conv {
                input: &input,
                images,
                height: side,
                width: side,
                channels,
                window,
                weight: &weight,
                bias: Some(&bias),
                out: &out,
                scratch: &scratch,
                workspace: &workspace,
            };
            let shape = format!("{images} x {side}^2, {channels} to {out_channels}");
            let amount = ("TFLOP/s", 2 * positions * window.taps() * channels * out_channels);
            match cuda.conv_lowered(&conv) {
                Err(CudaError::NoCublas) => {}
                outcome => {
                    outcome?;
                    self.row(("conv, Products", shape.clone()), amount, || cuda.conv_lowered(&conv))?;
                }
            }
            match cuda.conv(&conv) {
                Ok(ConvBy::Products) | Err(CudaError::NoCublas) => {}
                outcome => {
                    let name = format!("conv, {:?}", outcome?);
                    self.row((&name, shape), amount, || cuda.conv(&conv).map(drop))?;
                }
            }
            let (weight, out) = (self.filled(channels)?, cuda.alloc::<bf16>(input.len())?);
            let moments = cuda.alloc(GroupNorm::<bf16>::scratch_len(images, side * side, channels))?;
            let norm = GroupNorm {
                x: &input,
                positions: side * side,
                channels,
                groups: 32,
                weight: &weight,
                bias: &weight,
                eps: 1e-6,
                silu: true,
                scratch: &moments,
                out: &out,
            };
            let amount = ("GB/s", 3 * bytes::<bf16>(input.len()));
            let shape = format!("{images} x {side}^2 x {channels}");
            self.row(("group_norm, silu", shape), amount, || cuda.group_norm(&norm))?;
        }
        Ok(())
    }

    fn attention(&mut self, (rows, tokens): (usize, usize)) -> Result<()> {
        let Sizes { heads, head_dim, .. } = self.sizes;
        let cuda = self.cuda;
        let len = rows * tokens * heads * head_dim;
        let (qkv, weight, out) = (self.filled(3 * len)?, self.filled(head_dim)?, cuda.alloc(len)?);
        let rope = cuda.upload(&vec![0.5f32.sqrt(); tokens * head_dim])?;
        let arguments = Attention {
            qkv: &qkv,
            q_weight: &weight,
            k_weight: &weight,
            rope: &rope,
            tokens,
            heads,
            eps: 1e-6,
            out: &out,
        };
        let shape = format!("{rows} x {tokens}, {heads} heads of {head_dim}");
        let amount = ("TFLOP/s", 4 * len * tokens);
        for tiling in [Tiling::Wide, Tiling::Standard, Tiling::Small] {
            let name = format!("attention, {}", format!("{tiling:?}").to_lowercase());
            self.row((&name, shape.clone()), amount, || cuda.attention_tiled(&arguments, tiling))?;
        }
        self.row(("attention_plain", shape), amount, || cuda.attention_plain(&arguments))?;
        Ok(())
    }
}

fn bytes<T: Element>(len: usize) -> usize {
    len * size_of::<T>()
}
