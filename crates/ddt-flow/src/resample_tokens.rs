//! Resampling a grid of tokens.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Bilinear resampling of a grid of tokens to another size.
///
/// ```text
/// y(i) = (1 - w) x(floor(p)) + w x(floor(p) + 1),   p = max(0, (i + 1/2) from / to - 1/2),  w = p - floor(p)
/// ```
///
/// along rows and columns, with the last token repeated beyond the edge. Brings the targets of representation
/// alignment onto the network's grid of tokens.
/// No antialiasing; corners are not aligned. Differentiable in `features`.
/// Computed in f32; the result has the dtype of `features`. Equal grids return the features unchanged.
///
/// # Shapes
/// `features`: (B, rows columns, C), row by row, with `(rows, columns) = from`; result:
/// (B, rows' columns', C) with `(rows', columns') = to`.
///
/// # Errors
/// The number of tokens is not that of `from`, or a dimension is empty.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// let column = Tensor::new(&[[[0f32], [4.0]]], &Device::Cpu)?;
/// let taller = ddt_flow::resample_tokens(&column, (2, 1), (4, 1))?;
/// assert_eq!(taller.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0, 3.0, 4.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn resample_tokens(features: &Tensor, from: (usize, usize), to: (usize, usize)) -> Result<Tensor> {
    let Ok((b, tokens, c)) = features.dims3() else {
        bail!("expected features (B, rows columns, C), got {:?}", features.shape());
    };
    if from.0.checked_mul(from.1) != Some(tokens) || features.elem_count() == 0 {
        bail!("expected features (B, {} x {}, C), not empty, got {:?}", from.0, from.1, features.shape());
    }
    if to.0 == 0 || to.1 == 0 {
        bail!("expected a grid of at least 1 x 1 to resample to, got {} x {}", to.0, to.1);
    }
    if from == to {
        return Ok(features.clone());
    }
    let mut xs = features.to_dtype(DType::F32)?;
    if from.0 != to.0 {
        let weights = weights(from.0, to.0, features.device())?.broadcast_left(b)?; // (B, rows', rows)
        xs = weights.matmul(&xs.reshape((b, from.0, from.1 * c))?)?; // (B, rows', columns C)
    }
    if from.1 != to.1 {
        let rows = b * to.0;
        let weights = weights(from.1, to.1, features.device())?.broadcast_left(rows)?;
        xs = weights.matmul(&xs.reshape((rows, from.1, c))?)?; // (B rows', columns', C)
    }
    xs.reshape((b, to.0 * to.1, c))?.to_dtype(features.dtype())
}

/// Weight of each of `from` tokens in each of `to`: `(to, from)`.
fn weights(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let position = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let first = (position as usize).min(from - 1);
        let weight = position - first as f64;
        row[first] += (1.0 - weight) as f32;
        row[(first + 1).min(from - 1)] += weight as f32;
    }
    Tensor::from_vec(weights, (to, from), device)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn values(xs: &Tensor) -> Vec<f32> {
        xs.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn doubling_a_square_gives_the_values_worked_out_by_hand() {
        let xs = Tensor::new(&[[[0f32], [4.0], [8.0], [16.0]]], &Device::Cpu).unwrap();
        let ys = resample_tokens(&xs, (2, 2), (4, 4)).unwrap();
        assert_eq!(ys.dims(), [1, 16, 1]);
        // Weights of the second row and column: 0, 1/4, 3/4, 1.
        let want =
            [[0.0, 1.0, 3.0, 4.0], [2.0, 3.25, 5.75, 7.0], [6.0, 7.75, 11.25, 13.0], [8.0, 10.0, 14.0, 16.0]];
        assert_eq!(values(&ys), want.concat());
    }

    #[test]
    fn downsampling_averages_only_two_neighbours() {
        let xs = Tensor::new(&[[[0f32], [1.0], [10.0], [100.0], [1000.0]]], &Device::Cpu).unwrap();
        // Positions 0.75 and 3.25 of the five.
        assert_eq!(values(&resample_tokens(&xs, (5, 1), (2, 1)).unwrap()), [0.75, 325.0]);
        assert_eq!(values(&resample_tokens(&xs, (1, 5), (1, 1)).unwrap()), [10.0]);
    }

    #[test]
    fn images_channels_and_axes_stay_apart() {
        let xs = Tensor::arange(0f32, 2.0 * 6.0 * 3.0, &Device::Cpu).unwrap().reshape((2, 6, 3)).unwrap();
        assert_eq!(values(&resample_tokens(&xs, (2, 3), (2, 3)).unwrap()), values(&xs));
        let ys = resample_tokens(&xs, (2, 3), (3, 5)).unwrap();
        assert_eq!(ys.dims(), [2, 15, 3]);
        // The middle row is halfway between both, and column 2 of 5 is column 1 of 3.
        let ys = ys.to_vec3::<f32>().unwrap();
        for (image, start) in ys.iter().zip([0.0, 18.0]) {
            assert_eq!(image[5 + 2], [start + 7.5, start + 8.5, start + 9.5]);
            assert_eq!(image[0], [start, start + 1.0, start + 2.0]);
            assert_eq!(image[14], [start + 15.0, start + 16.0, start + 17.0]);
        }
    }

    #[test]
    fn one_value_everywhere_stays_and_gradients_flow() {
        let xs = Var::ones((1, 12, 2), DType::F32, &Device::Cpu).unwrap();
        let ys = resample_tokens(xs.as_tensor(), (3, 4), (7, 2)).unwrap();
        assert!(values(&ys).iter().all(|y| (y - 1.0).abs() < 1e-6));
        let grads = ys.sum_all().unwrap().backward().unwrap();
        let sum: f32 = values(grads.get(&xs).unwrap()).iter().sum();
        assert!((sum - 28.0).abs() < 1e-4, "{sum}");
        let half = xs.to_dtype(DType::BF16).unwrap();
        assert_eq!(resample_tokens(&half, (3, 4), (1, 1)).unwrap().dtype(), DType::BF16);
    }

    #[test]
    fn other_grids_are_errors() {
        let xs = Tensor::zeros((1, 6, 2), DType::F32, &Device::Cpu).unwrap();
        for (from, to) in [((2, 2), (2, 2)), ((6, 1), (0, 3)), ((6, 1), (1, 0)), ((usize::MAX, 2), (1, 1))] {
            assert!(resample_tokens(&xs, from, to).is_err(), "{from:?} {to:?}");
        }
        let empty = Tensor::zeros((0, 6, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(resample_tokens(&empty, (2, 3), (1, 1)).is_err());
        assert!(resample_tokens(&xs.squeeze(0).unwrap(), (2, 3), (1, 1)).is_err());
    }
}
