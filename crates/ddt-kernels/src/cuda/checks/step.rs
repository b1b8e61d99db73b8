//! A solver's step around the network, against f64.

use super::support::{Check, Random, spoilt};
use crate::cuda::{Cuda, Float, Grid, GuidedStep, Result};

pub(super) fn verify<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    for grid in [
        Grid { images: 2, channels: 4, height: 8, width: 12, patch: 2 },
        Grid { images: 1, channels: 3, height: 6, width: 3, patch: 3 },
        Grid { images: 3, channels: 16, height: 4, width: 4, patch: 1 },
    ] {
        patches::<T>(cuda, checks, grid)?;
    }
    waves::<T>(cuda, checks)
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
    let numbers = [[0.25, 0.125, 2.5, 1.0], [0.375, 0.25, 1.5, 99.0]];
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
        for (nth, [_, dt, scale, guided]) in numbers.into_iter().enumerate() {
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
    cuda.write_steps(&steps, &[[0.0; 4], [0.625, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])?;
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
