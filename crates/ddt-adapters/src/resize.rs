//! Resizing as two matmuls, one along each axis, on any device.

use candle_core::{Device, Result, Tensor, bail};

/// Interpolation between pixels; pixels beyond the edge repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interpolation {
    /// Bicubic with a = -0.75, pixel centres at halves, no antialiasing: four neighbours always.
    Cubic,
    /// Bicubic with a = -0.5, pixel centres at halves, the kernel widened when shrinking; what the kernel
    /// loses beyond the edge is made up for inside.
    CubicAntialias,
    /// Bilinear, pixel centres at halves, no antialiasing.
    Bilinear,
    /// Bilinear with pixels at whole numbers, as TensorFlow 1 had it.
    BilinearTf1,
}

/// Resizes planes `(N, H, W)` of f32 to `(N, to.0, to.1)`.
pub(crate) fn resize(planes: &Tensor, to: (usize, usize), how: Interpolation) -> Result<Tensor> {
    let (n, height, width) = planes.dims3()?;
    if planes.elem_count() == 0 || to.0 == 0 || to.1 == 0 {
        bail!("expected images of at least 1 x 1 to resize, got {height} x {width} to {} x {}", to.0, to.1);
    }
    let mut planes = planes.contiguous()?;
    if to.1 != width {
        let columns = matrix(width, to.1, how, planes.device())?; // (W', W)
        planes = planes.reshape((n * height, width))?.matmul(&columns.t()?)?.reshape((n, height, to.1))?;
    }
    if to.0 != height {
        let rows = matrix(height, to.0, how, planes.device())?; // (H', H)
        planes = rows.broadcast_left(n)?.matmul(&planes)?; // (N, H', W')
    }
    Ok(planes)
}

/// Weight of each of `from` pixels in each of `to`: `(to, from)`.
fn matrix(from: usize, to: usize, how: Interpolation, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; to * from];
    let scale = from as f64 / to as f64;
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let mut add = |at: f64, weight: f64| row[(at.max(0.0) as usize).min(from - 1)] += weight as f32;
        let centre = (i as f64 + 0.5) * scale;
        match how {
            Interpolation::Cubic => {
                let position = centre - 0.5;
                for offset in [-1.0, 0.0, 1.0, 2.0] {
                    let at = position.floor() + offset;
                    add(at, cubic(at - position, -0.75));
                }
            }
            Interpolation::CubicAntialias => {
                let widened = scale.max(1.0);
                let first = (centre - 2.0 * widened + 0.5).max(0.0).floor() as usize;
                let end = ((centre + 2.0 * widened + 0.5).floor() as usize).min(from);
                let weight = |at: usize| cubic((at as f64 + 0.5 - centre) / widened, -0.5);
                let sum: f64 = (first..end).map(weight).sum();
                (first..end).for_each(|at| add(at as f64, weight(at) / sum));
            }
            Interpolation::Bilinear | Interpolation::BilinearTf1 => {
                let position = if how == Interpolation::Bilinear { centre - 0.5 } else { i as f64 * scale };
                let share = position - position.floor();
                add(position.floor(), 1.0 - share);
                add(position.floor() + 1.0, share);
            }
        }
    }
    Tensor::from_vec(weights, (to, from), device)
}

/// The cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        a * (((x - 5.0) * x + 8.0) * x - 4.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, rel_rms};

    const ALL: [Interpolation; 4] = [
        Interpolation::Cubic,
        Interpolation::CubicAntialias,
        Interpolation::Bilinear,
        Interpolation::BilinearTf1,
    ];

    fn line(values: &[f32], to: usize, how: Interpolation) -> Vec<f32> {
        let planes = Tensor::from_slice(values, (1, 1, values.len()), &Device::Cpu).unwrap();
        resize(&planes, (1, to), how).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_worked_out_by_hand() {
        // Positions 0, 1.5.
        assert_eq!(line(&[0.0, 4.0, 8.0], 2, Interpolation::BilinearTf1), [0.0, 6.0]);
        // Positions -1/4, which is 0, 1/4, 3/4 and 5/4, which is 1.
        assert_eq!(line(&[0.0, 4.0], 4, Interpolation::Bilinear), [0.0, 1.0, 3.0, 4.0]);
        // Position 1.5 of four, weights -3/32, 19/32, 19/32, -3/32.
        let cubic = line(&[0.0, 32.0, 64.0, 320.0], 1, Interpolation::Cubic);
        assert_eq!(cubic, [19.0 + 38.0 - 30.0]);
        // All four, widened fourfold: the kernel at 1/8 and 3/8, normalised.
        let wide = line(&[0.0, 1.0, 1.0, 0.0], 1, Interpolation::CubicAntialias)[0];
        let (near, far) = (1.0 - 2.5 / 64.0 + 1.5 / 512.0, 1.0 - 22.5 / 64.0 + 40.5 / 512.0);
        assert!((f64::from(wide) - near / (near + far)).abs() < 1e-6);
    }

    #[test]
    fn one_value_everywhere_stays_and_axes_stay_apart() {
        for how in ALL {
            for (from, to) in [(3, 8), (8, 3), (37, 16), (1, 4), (5, 1)] {
                assert!(line(&vec![1.0; from], to, how).iter().all(|x| (x - 1.0).abs() < 1e-6), "{how:?}");
            }
            let planes = random(1, (2, 5, 7));
            let got = resize(&planes, (3, 11), how).unwrap();
            assert_eq!(got.dims(), [2, 3, 11]);
            let turned = resize(&planes.transpose(1, 2).unwrap(), (11, 3), how).unwrap();
            assert!(rel_rms(&turned.transpose(1, 2).unwrap(), &got) < 1e-6, "{how:?}");
            assert_eq!(rel_rms(&resize(&planes, (5, 7), how).unwrap(), &planes), 0.0);
        }
    }

    #[test]
    fn nothing_cannot_be_resized() {
        for how in ALL {
            assert!(resize(&random(1, (1, 0, 3)), (2, 2), how).is_err());
            assert!(resize(&random(1, (1, 3, 3)), (0, 2), how).is_err());
            assert!(resize(&random(1, (3, 3)), (2, 2), how).is_err());
        }
    }
}
