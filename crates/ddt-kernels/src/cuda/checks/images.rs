//! Convolution, group norm and what else autoencoders and Inception are made of, against f64.

use super::support::{Check, Data, Random, relative_error, silu, spoilt};
use crate::cuda::{Columns, Conv, Cuda, Float, GroupNorm, Layout, Pool, Result, Window};

const EPS: f64 = 1e-6;

pub(super) fn verify<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let halve = Window { height: 3, width: 3, stride: 2, pad_rows: 0, pad_columns: 0 };
    let flat = Window { height: 1, width: 7, stride: 1, pad_rows: 0, pad_columns: 3 };
    let cases = [
        (Image { images: 2, height: 5, width: 7, channels: 8 }, Window::SAME, 16),
        (Image { images: 1, height: 1, width: 3, channels: 24 }, Window::SAME, 8),
        (Image { images: 2, height: 7, width: 6, channels: 8 }, halve, 8),
        (Image { images: 1, height: 3, width: 9, channels: 16 }, flat, 24),
        (Image { images: 3, height: 2, width: 3, channels: 16 }, Window::POINT, 8),
    ];
    for (image, window, out_channels) in cases {
        conv::<T>(cuda, checks, image, (window, out_channels))?;
    }
    // Less than a piece; whole pieces and a rest; groups narrower than a read, and wider than a warp.
    for (images, positions, channels, groups) in
        [(2, 5, 8, 2), (1, 300, 128, 32), (2, 40, 24, 3), (1, 515, 64, 1), (1, 9, 1024, 8)]
    {
        group_norm::<T>(cuda, checks, (images, positions, channels, groups))?;
    }
    for (window, mean) in [(halve, false), (Window::SAME, false), (Window::SAME, true)] {
        pool::<T>(cuda, checks, window, mean)?;
    }
    columns::<T>(cuda, checks)?;
    layouts::<T>(cuda, checks)
}

#[derive(Debug, Clone, Copy)]
struct Image {
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl Image {
    fn len(&self) -> usize {
        self.images * self.height * self.width * self.channels
    }

    fn at(&self, image: usize, (row, column): (usize, usize), channel: usize) -> usize {
        ((image * self.height + row) * self.width + column) * self.channels + channel
    }
}

/// The sum as it is defined, tap by tap.
fn exact_conv<T>(
    image: Image,
    window: Window,
    out: Image,
    (input, weight, bias): (&Data<T>, &Data<T>, &Data<T>),
) -> Vec<f64> {
    let mut want = Vec::new();
    for (nth, row, column) in (0..out.images)
        .flat_map(|nth| (0..out.height).map(move |row| (nth, row)))
        .flat_map(|(nth, row)| (0..out.width).map(move |column| (nth, row, column)))
    {
        for channel in 0..out.channels {
            let mut sum = bias.exact[channel];
            for tap in 0..window.taps() {
                let y = (row * window.stride + tap / window.width).checked_sub(window.pad_rows);
                let x = (column * window.stride + tap % window.width).checked_sub(window.pad_columns);
                let inside = y.zip(x).filter(|&(y, x)| y < image.height && x < image.width);
                let Some(place) = inside else { continue };
                for from in 0..image.channels {
                    let weight = weight.exact[(channel * window.taps() + tap) * image.channels + from];
                    sum += weight * input.exact[image.at(nth, place, from)];
                }
            }
            want.push(sum);
        }
    }
    want
}

fn conv<T: Float>(
    cuda: &Cuda,
    checks: &mut Vec<Check>,
    image: Image,
    (window, out_channels): (Window, usize),
) -> Result<()> {
    let (height, width) = window.result_of(image.height, image.width).unwrap_or_default();
    let out_image = Image { images: image.images, height, width, channels: out_channels };
    let mut random = Random::new((image.len() * out_channels) as u64);
    let input = random.data::<T>(cuda, image.len(), (0.1, 1.0))?;
    let weight = random.data::<T>(cuda, out_channels * window.taps() * image.channels, (0.0, 0.3))?;
    let bias = random.data::<T>(cuda, out_channels, (0.0, 1.0))?;
    let want = exact_conv(image, window, out_image, (&input, &weight, &bias));
    let workspace = cuda.alloc(32 << 20)?;
    let least = Conv::<T>::scratch_bytes(window, image.channels);
    // All at once, and a few positions at a time with a rest.
    for scratch in [1 << 20, 4 * least] {
        let scratch = cuda.alloc(scratch)?;
        let out = spoilt(cuda, out_image.len())?;
        let arguments = Conv {
            input: &input.device,
            images: image.images,
            height: image.height,
            width: image.width,
            channels: image.channels,
            window,
            weight: &weight.device,
            bias: Some(&bias.device),
            out: &out,
            scratch: &scratch,
            workspace: &workspace,
        };
        let shape = format!("{image:?}, {window:?}, {} bytes of scratch", scratch.len());
        let by = cuda.conv(&arguments)?;
        let name = format!("conv, {by:?}");
        checks.push(Check::rounded(&name, shape.clone(), &cuda.read(&out)?, &want));
        cuda.conv_lowered(&arguments)?;
        checks.push(Check::rounded("conv, lowered", shape, &cuda.read(&out)?, &want));
    }
    Ok(())
}

fn pool<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>, window: Window, mean: bool) -> Result<()> {
    let image = Image { images: 2, height: 7, width: 5, channels: 16 };
    let (height, width) = window.result_of(image.height, image.width).unwrap_or_default();
    let x = Random::new(9).data::<T>(cuda, image.len(), (-0.5, 1.0))?;
    let out = spoilt::<T>(cuda, image.images * height * width * image.channels)?;
    cuda.pool(&Pool {
        x: &x.device,
        height: image.height,
        width: image.width,
        channels: image.channels,
        window,
        mean,
        out: &out,
    })?;
    let mut want = Vec::new();
    for at in 0..image.images * height * width {
        let (nth, row, column) = (at / width / height, at / width % height, at % width);
        for channel in 0..image.channels {
            let seen = (0..window.taps()).filter_map(|tap| {
                let y = (row * window.stride + tap / window.width).checked_sub(window.pad_rows)?;
                let x = (column * window.stride + tap % window.width).checked_sub(window.pad_columns)?;
                (y < image.height && x < image.width).then_some((y, x))
            });
            let seen: Vec<f64> = seen.map(|place| x.exact[image.at(nth, place, channel)]).collect();
            want.push(match mean {
                true => seen.iter().sum::<f64>() / seen.len() as f64,
                false => seen.into_iter().fold(f64::NEG_INFINITY, f64::max),
            });
        }
    }
    let name = if mean { "pool, mean" } else { "pool, largest" };
    checks.push(Check::rounded(name, format!("{image:?}, {window:?}"), &cuda.read(&out)?, &want));
    Ok(())
}

fn columns<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let (tokens, width, stride, first) = (5, 16, 40, 8);
    let mut random = Random::new(10);
    let (x, bias) =
        (random.data::<T>(cuda, tokens * width, (0.0, 1.0))?, random.data::<T>(cuda, width, (0.0, 1.0))?);
    let before = random.data::<T>(cuda, tokens * stride, (0.0, 1.0))?;
    for (bias, relu) in [(Some(&bias), true), (None, false)] {
        cuda.columns(&Columns {
            x: &x.device,
            width,
            bias: bias.map(|it| &it.device),
            relu,
            out: &before.device,
            stride,
            first,
        })?;
        let want: Vec<f64> = (0..tokens * stride)
            .map(|i| match (i % stride).checked_sub(first).filter(|&column| column < width) {
                None => before.exact[i],
                Some(column) => {
                    let sum = x.exact[i / stride * width + column] + bias.map_or(0.0, |it| it.exact[column]);
                    if relu { sum.max(0.0) } else { sum }
                }
            })
            .collect();
        let shape = format!("T {tokens}, {width} from {first} of {stride}, ReLU: {relu}");
        checks.push(Check::rounded("columns", shape, &cuda.read(&before.device)?, &want));
    }
    Ok(())
}

fn group_norm<T: Float>(
    cuda: &Cuda,
    checks: &mut Vec<Check>,
    (images, positions, channels, groups): (usize, usize, usize, usize),
) -> Result<()> {
    let mut random = Random::new((positions * channels) as u64);
    // The mean is far from 0, as it is in a decoder.
    let x = random.data::<T>(cuda, images * positions * channels, (3.0, 1.0))?;
    let weight = random.data::<T>(cuda, channels, (1.0, 0.5))?;
    let bias = random.data::<T>(cuda, channels, (0.0, 0.5))?;
    let members = channels / groups;
    let mut norm = vec![0.0; x.exact.len()];
    for (image, group) in (0..images).flat_map(|image| (0..groups).map(move |group| (image, group))) {
        let places: Vec<usize> = (0..positions)
            .flat_map(|position| (0..members).map(move |member| (position, group * members + member)))
            .map(|(position, channel)| (image * positions + position) * channels + channel)
            .collect();
        let count = places.len() as f64;
        let mean = places.iter().map(|&i| x.exact[i]).sum::<f64>() / count;
        let variance = places.iter().map(|&i| (x.exact[i] - mean).powi(2)).sum::<f64>() / count;
        for i in places {
            let scale = weight.exact[i % channels] / (variance + EPS).sqrt();
            norm[i] = (x.exact[i] - mean) * scale + bias.exact[i % channels];
        }
    }
    let active: Vec<f64> = norm.iter().map(|&x| silu(x)).collect();
    let scratch = spoilt(cuda, GroupNorm::<T>::scratch_len(images, positions, channels))?;
    let shape = format!("B {images}, P {positions}, C {channels}, {groups} groups");
    let (out, wide) = (spoilt::<T>(cuda, x.exact.len())?, spoilt::<f32>(cuda, x.exact.len())?);
    let (x, weight, bias) = (&x.device, &weight.device, &bias.device);
    let eps = EPS as f32;
    cuda.group_norm(&GroupNorm {
        x,
        positions,
        channels,
        groups,
        weight,
        bias,
        eps,
        silu: true,
        scratch: &scratch,
        out: &out,
    })?;
    checks.push(Check::rounded("group_norm, silu", shape.clone(), &cuda.read(&out)?, &active));
    cuda.group_norm(&GroupNorm {
        x,
        positions,
        channels,
        groups,
        weight,
        bias,
        eps,
        silu: false,
        scratch: &scratch,
        out: &wide,
    })?;
    let name = format!("group_norm, wide, from {}", T::NAME);
    checks.push(Check::rounded(&name, shape, &cuda.read(&wide)?, &norm));
    Ok(())
}

fn layouts<T: Float>(cuda: &Cuda, checks: &mut Vec<Check>) -> Result<()> {
    let layout = Layout { images: 2, channels: 3, positions: 35, wide: 8 };
    let Layout { images, channels, positions, wide } = layout;
    let mut random = Random::new(3);
    let apart = random.data::<f32>(cuda, images * channels * positions, (0.0, 1.0))?;
    let together = spoilt::<T>(cuda, images * positions * wide)?;
    cuda.channels_last(&apart.device, layout, 0.5, &together)?;
    let mut want = vec![0.0; together.len()];
    for (i, x) in apart.exact.iter().enumerate() {
        let (image, channel, position) = (i / positions / channels, i / positions % channels, i % positions);
        want[(image * positions + position) * wide + channel] = 0.5 * x;
    }
    let shape = format!("{layout:?}");
    checks.push(Check::rounded("channels_last", shape.clone(), &cuda.read(&together)?, &want));
    let back = spoilt::<f32>(cuda, apart.exact.len())?;
    cuda.channels_first(&together, layout, &back)?;
    let halves: Vec<f64> =
        apart.exact.iter().map(|x| f64::from(T::from_f32(0.5 * *x as f32).to_f32())).collect();
    checks.push(Check::rounded("channels_first", shape, &cuda.read(&back)?, &halves));

    let image = Image { images: 2, height: 3, width: 5, channels: 16 };
    let double = Image { height: 6, width: 10, ..image };
    let x = random.data::<T>(cuda, image.len(), (0.0, 1.0))?;
    let out = spoilt::<T>(cuda, double.len())?;
    cuda.upsample(&x.device, (image.height, image.width), image.channels, &out)?;
    let mut want = vec![0.0; double.len()];
    for (nth, row) in (0..double.images).flat_map(|nth| (0..double.height).map(move |row| (nth, row))) {
        for (column, channel) in (0..double.width).flat_map(|it| (0..16).map(move |channel| (it, channel))) {
            want[double.at(nth, (row, column), channel)] =
                x.exact[image.at(nth, (row / 2, column / 2), channel)];
        }
    }
    checks.push(Check::rounded("upsample", format!("{image:?}"), &cuda.read(&out)?, &want));

    let y = random.data::<f32>(cuda, image.len(), (0.0, 1.0))?;
    cuda.accumulate(&x.device, &y.device)?;
    let want: Vec<f64> = x.exact.iter().zip(&y.exact).map(|(x, y)| x + y).collect();
    checks.push(Check::rounded("accumulate", format!("{}", want.len()), &cuda.read(&x.device)?, &want));

    for (rows, length) in [(3, 5), (2, 700)] {
        let x = random.data::<f32>(cuda, rows * length, (2.0, 8.0))?;
        cuda.softmax_rows(&x.device, length, 0.7)?;
        let want: Vec<f64> = x
            .exact
            .chunks_exact(length)
            .flat_map(|row| {
                let weights: Vec<f64> = row.iter().map(|x| (x * 0.7).exp()).collect();
                let total: f64 = weights.iter().sum();
                weights.into_iter().map(move |weight| weight / total)
            })
            .collect();
        checks.push(Check {
            name: "softmax_rows f32".into(),
            shape: format!("{rows} x {length}"),
            error_rms_relative: relative_error(&cuda.read(&x.device)?, &want),
            tolerance: 1e-5,
        });
    }
    Ok(())
}
