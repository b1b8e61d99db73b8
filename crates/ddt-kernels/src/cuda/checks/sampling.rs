//! Norms, gates, sums and GEMMs, and a solver's step around the network, against f64.

use super::support::{self, Check, Random, spoilt};
use crate::cuda::{
    Activation, AddRows, Branch, ClassCondition, Cuda, Float, Forecast, GateNorm, Gemm, Grid, GuidedStep,
    MAX_SETS, Modulate, Norm, Result, Rows, SwiGlu,
};

pub(super) fn verify<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    // Every number of chunks a lane may hold, full and not; a row per token, per image, and one that ends
    // inside an image.
    for (width, tokens, tokens_per_row) in [
        (8, 5, 1),
        (256, 4, 2),
        (384, 3, 1),
        (768, 9, 4),
        (1024, 2, 2),
        (1152, 6, 3),
        (1160, 3, 1),
        (1536, 2, 1),
    ]
    .into_iter()
    .chain([(1792, 2, 1), (2048, 2, 1)])
    {
        for weights in [&[1.0][..], &[-0.75, 1.75], &[0.25, -1.5, 2.25]] {
            gate_norm::<T>(cuda, checks, (width, tokens, tokens_per_row), weights)?;
        }
    }
    for (hidden, tokens) in [(64, 5), (3072, 2), (170, 3)] {
        let ab = Random::new(hidden as u64).data::<T>(cuda, 2 * tokens * hidden, (0.0, 4.0))?;
        let out = spoilt(cuda, tokens * hidden)?;
        cuda.swiglu(&SwiGlu { ab: &ab.device, hidden, out: &out })?;
        let want = support::swiglu(&ab.exact, hidden);
        let shape = format!("T {tokens}, F {hidden}");
        checks.push(Check::rounded("swiglu", shape.clone(), &cuda.read(&out)?, &want));
        let half = |nth: usize| {
            let rows = (0..tokens).flat_map(|row| (row * 2 + nth) * hidden..(row * 2 + nth + 1) * hidden);
            cuda.upload(&rows.map(|i| T::from_f32(ab.exact[i] as f32)).collect::<Vec<T>>())
        };
        let out = spoilt(cuda, tokens * hidden)?;
        cuda.swiglu_of_two([&half(0)?, &half(1)?], hidden, &out)?;
        checks.push(Check::rounded("swiglu, of two", shape, &cuda.read(&out)?, &want));
    }
    sums::<T>(cuda, checks)?;
    products::<T>(cuda, checks)?;
    for grid in [
        Grid { images: 2, channels: 4, height: 8, width: 12, patch: 2 },
        Grid { images: 1, channels: 3, height: 6, width: 3, patch: 3 },
        Grid { images: 3, channels: 16, height: 4, width: 4, patch: 1 },
    ] {
        patches::<T>(cuda, checks, grid)?;
    }
    waves::<T>(cuda, checks)
}

fn products<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let workspace = cuda.alloc(32 << 20)?;
    for (m, n, k, with_bias) in [(24, 16, 72, true), (1, 64, 256, true), (40, 192, 64, false)] {
        let mut random = Random::new((m * n * k) as u64);
        let input = random.data::<T>(cuda, m * k, (0.0, 1.0))?;
        let weight = random.data::<T>(cuda, n * k, (0.0, 1.0))?;
        let bias = random.data::<T>(cuda, n, (0.0, 1.0))?;
        let out = spoilt::<T>(cuda, m * n)?;
        let product = Gemm {
            input: &input.device,
            weight: &weight.device,
            bias: with_bias.then_some(&bias.device),
            out: &out,
            depth: k,
            workspace: &workspace,
        };
        cuda.tune_gemm(&product)?;
        cuda.gemm(&product)?;
        let want: Vec<f64> = (0..m * n)
            .map(|i| {
                let (row, column) = (&input.exact[i / n * k..][..k], &weight.exact[i % n * k..][..k]);
                let sum: f64 = row.iter().zip(column).map(|(x, w)| x * w).sum();
                sum + if with_bias { bias.exact[i % n] } else { 0.0 }
            })
            .collect();
        let shape = format!("{m} x {n} x {k}, bias {with_bias}");
        checks.push(Check::rounded("gemm", shape, &cuda.read(&out)?, &want));
    }
    Ok(())
}

fn gate_norm<T: Float>(
    cuda: &Cuda,
    checks: &mut Vec<Check>,
    (width, tokens, tokens_per_row): (usize, usize, usize),
    weights: &[f32],
) -> Result<()> {
    // What belongs to another step, or to a set that is not combined, makes every result NaN.
    let mut numbers = [[f32::NAN; 4 + MAX_SETS]; 2];
    numbers[1][4..4 + weights.len()].copy_from_slice(weights);
    let steps = cuda.steps(2)?;
    cuda.write_steps(&steps, &numbers)?;
    cuda.go_to_step(&steps, 1)?;
    let mut random = Random::new(width as u64);
    let x = random.data::<T>(cuda, tokens * width, (0.5, 2.0))?;
    let y = random.data::<T>(cuda, tokens * width, (0.0, 2.0))?;
    let bias = random.data::<T>(cuda, width, (0.0, 1.0))?;
    let weight = random.data::<T>(cuda, width, (1.0, 0.5))?;
    // Gate, shift and scale in the middle of wider rows, as those of a block in those of all.
    let stride = 5 * width;
    let set = tokens.div_ceil(tokens_per_row) * stride;
    let rows = random.data::<T>(cuda, MAX_SETS * set, (0.0, 1.0))?;
    let forecast =
        (weights.len() > 1).then_some(Forecast { sets: weights.len(), stride: set, steps: &steps });
    let part = |nth: usize| Rows { data: &rows.device, stride, first: nth * width, tokens_per_row };
    let exact = |nth: usize, token: usize, column: usize| {
        let at = token / tokens_per_row * stride + nth * width + column;
        let term = |(nth, &weight): (usize, &f32)| f64::from(weight) * rows.exact[nth * set + at];
        weights.iter().enumerate().map(term).sum::<f64>()
    };
    let joined = support::gate_residual(&x.exact, &y.exact, &bias.exact, |t, c| exact(1, t, c));
    let unbiased = support::gate_residual(&x.exact, &y.exact, &vec![0.0; width], |t, c| exact(1, t, c));
    let sets = weights.len();
    let (eps, shape) = (1e-6, format!("T {tokens}, D {width}, {tokens_per_row} tokens a row, {sets} sets"));
    let modulation = |t: usize, c: usize| (exact(2, t, c), exact(3, t, c));
    let cases = [
        ("gate_norm, gate, bias, rms", Some(true), Some(true)),
        ("gate_norm, gate, layer", Some(false), Some(false)),
        ("gate_norm, rms", None, Some(true)),
        ("gate_norm, layer", None, Some(false)),
        ("gate_norm, gate", Some(true), None),
    ];
    for (name, with_bias, rms) in cases {
        let stream = spoilt::<T>(cuda, tokens * width)?;
        cuda.copy(&x.device, &stream)?;
        // In place, or elsewhere.
        let sum = if with_bias == Some(true) { spoilt::<T>(cuda, tokens * width)? } else { stream.clone() };
        let out = spoilt::<T>(cuda, tokens * width)?;
        let norm = |rms| if rms { Norm::Rms(&weight.device) } else { Norm::Layer };
        cuda.gate_norm(&GateNorm {
            x: &stream,
            width,
            branch: with_bias.map(|with| Branch {
                y: &y.device,
                bias: with.then_some(&bias.device),
                gate: part(1),
                sum: &sum,
            }),
            modulate: rms.map(|rms| Modulate {
                norm: norm(rms),
                shift: part(2),
                scale: part(3),
                eps: eps as f32,
                out: &out,
            }),
            forecast,
        })?;
        let joined = match with_bias {
            None => &x.exact,
            Some(true) => &joined,
            Some(false) => &unbiased,
        };
        let name_of = |part: &str| format!("{name}: {part}");
        checks.push(Check::rounded(&name_of("stream"), shape.clone(), &cuda.read(&sum)?, joined));
        if let Some(rms) = rms {
            let weight = rms.then_some(&weight.exact[..]);
            let want = support::norm_modulate(joined, width, weight, modulation, eps);
            checks.push(Check::rounded(&name_of("normed"), shape.clone(), &cuda.read(&out)?, &want));
        }
    }
    Ok(())
}

fn sums<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let (tokens, width, tokens_per_row) = (6, 1152, 4);
    let mut random = Random::new(7);
    let x = random.data::<T>(cuda, tokens * width, (0.0, 3.0))?;
    let rows = random.data::<T>(cuda, 2 * 2 * width, (0.0, 1.0))?;
    let addend = Rows { data: &rows.device, stride: 2 * width, first: width, tokens_per_row };
    let one = Rows::one(&rows.device);
    let of = |i: usize| rows.exact[i / width / tokens_per_row * 2 * width + width + i % width];
    let shape = format!("T {tokens}, D {width}");
    type Want<'a> = &'a dyn Fn(usize, f64) -> f64;
    let cases: [(&str, _, _, Want<'_>); 4] = [
        ("add_rows, silu", Some(addend), Activation::Silu, &|i, x| support::silu(x + of(i))),
        ("add_rows", Some(addend), Activation::None, &|i, x| x + of(i)),
        ("add_rows, bias", Some(one), Activation::None, &|i, x| x + rows.exact[i % width]),
        ("silu", None, Activation::Silu, &|_, x| support::silu(x)),
    ];
    for (name, addend, activation, want) in cases {
        let out = spoilt::<T>(cuda, tokens * width)?;
        cuda.add_rows(&AddRows { x: &x.device, width, addend, activation, out: &out })?;
        let want: Vec<f64> = x.exact.iter().enumerate().map(|(i, &x)| want(i, x)).collect();
        checks.push(Check::rounded(name, shape.clone(), &cuda.read(&out)?, &want));
    }
    let (classes, labels) = (11, [3u32, 10, 0, 3]);
    let table = random.data::<T>(cuda, classes * width, (0.0, 1.0))?;
    let time = random.data::<T>(cuda, width, (0.0, 1.0))?;
    let on_device = cuda.upload(&labels)?;
    for (name, with_time) in [("class_condition", true), ("class gather", false)] {
        let out = spoilt::<T>(cuda, labels.len() * width)?;
        cuda.class_condition(&ClassCondition {
            labels: &on_device,
            table: &table.device,
            width,
            time: with_time.then_some(&time.device),
            out: &out,
        })?;
        let want: Vec<f64> = (0..labels.len() * width)
            .map(|i| {
                let class = table.exact[labels[i / width] as usize * width + i % width];
                if with_time { support::silu(time.exact[i % width] + class) } else { class }
            })
            .collect();
        let shape = format!("R {}, D {width}", labels.len());
        checks.push(Check::rounded(name, shape, &cuda.read(&out)?, &want));
    }
    Ok(())
}

/// Where each element of the latents is in the tokens, counted and not computed.
fn order(grid: Grid) -> Vec<usize> {
    let Grid { images, channels, height, width, patch } = grid;
    let mut places = vec![0; grid.len()];
    let mut next = 0;
    for image in 0..images {
        for token_row in (0..height).step_by(patch) {
            for token_column in (0..width).step_by(patch) {
                for channel in 0..channels {
                    for row in token_row..token_row + patch {
                        for column in token_column..token_column + patch {
                            places[((image * channels + channel) * height + row) * width + column] = next;
                            next += 1;
                        }
                    }
                }
            }
        }
    }
    places
}

fn patches<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>, grid: Grid) -> Result<()> {
    let (len, places) = (grid.len(), order(grid));
    let mut random = Random::new(len as u64);
    let latents = random.data::<f32>(cuda, len, (0.0, 3.0))?;
    let shape = format!("{grid:?}");
    for copies in [1, 2] {
        let out = spoilt::<T>(cuda, copies * len)?;
        cuda.patchify(&latents.device, grid, &out)?;
        let mut want = vec![0.0; copies * len];
        for (i, &place) in places.iter().enumerate() {
            (0..copies).for_each(|copy| want[copy * len + place] = latents.exact[i]);
        }
        checks.push(Check::rounded(&format!("patchify, {copies}"), shape.clone(), &cuda.read(&out)?, &want));
    }

    // Two steps of one recorded graph: the numbers are the device's, and change between them.
    let numbers = [[0.25, 0.125, 2.5, 1.0, 0.0, 0.0, 0.0], [0.375, 0.25, 1.5, 99.0, 0.0, 0.0, 0.0]];
    let steps = cuda.steps(2)?;
    for (name, copies) in [("guided_step, class", 1), ("guided_step, both", 2)] {
        cuda.write_steps(&steps, &numbers)?;
        let tokens = random.data::<T>(cuda, copies * len, (0.0, 3.0))?;
        let (x, velocity) = (cuda.alloc::<f32>(len)?, spoilt::<f32>(cuda, len)?);
        cuda.copy(&latents.device, &x)?;
        let graph = cuda.capture(|| {
            cuda.guided_step(&GuidedStep {
                tokens: &tokens.device,
                grid,
                steps: &steps,
                velocity: Some(&velocity),
                x: Some(&x),
            })?;
            cuda.next_step(&steps)
        })?;
        let mut want = latents.exact.clone();
        for (nth, [_, dt, scale, guided, ..]) in numbers.into_iter().enumerate() {
            graph.launch()?;
            let channel = |i: usize| i / (grid.height * grid.width) % grid.channels;
            let want_velocity: Vec<f64> = (0..len)
                .map(|i| {
                    let class = tokens.exact[places[i]];
                    if copies == 1 || channel(i) as f32 >= guided {
                        return class;
                    }
                    let none = tokens.exact[len + places[i]];
                    none + f64::from(scale) * (class - none)
                })
                .collect();
            want.iter_mut().zip(&want_velocity).for_each(|(x, v)| *x += f64::from(dt) * v);
            let name = |what: &str| format!("{name}, step {nth}: {what}");
            let got = cuda.read(&velocity)?;
            checks.push(Check::rounded::<f32>(&name("velocity"), shape.clone(), &got, &want_velocity));
            checks.push(Check::rounded::<f32>(&name("latents"), shape.clone(), &cuda.read(&x)?, &want));
        }
    }
    Ok(())
}

fn waves<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let steps = cuda.steps(3)?;
    cuda.write_steps(&steps, &[0.0, 0.625, 1.0].map(|t| [t, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))?;
    for (step, t, max_period) in [(1, 0.625, 10.0), (2, 1.0, 10_000.0)] {
        cuda.go_to_step(&steps, step)?;
        let out = spoilt::<T>(cuda, 256)?;
        cuda.timestep_embedding(&steps, max_period, &out)?;
        let angle = |k: usize| t * (-f64::from(max_period).ln() * k as f64 / 128.0).exp();
        let want: Vec<f64> =
            (0..128).map(|k| angle(k).cos()).chain((0..128).map(|k| angle(k).sin())).collect();
        let shape = format!("t {t}, period {max_period}");
        checks.push(Check::rounded("timestep_embedding", shape, &cuda.read(&out)?, &want));
    }
    Ok(())
}
