//! The discrete cosine transform of a small image.

use std::f64::consts::PI;

/// The orthonormal two-dimensional DCT-II of a row-major image.
///
/// ```text
/// X[k, l] = c_k c_l sum_ij x[i, j] cos(pi (i + 1/2) k / rows) cos(pi (j + 1/2) l / columns)
/// c_0 = sqrt(1 / n), c_k = sqrt(2 / n) otherwise
/// ```
///
/// The basis of appendix D of arXiv:2504.05741. Orthonormal: the sum of squares stays, so white noise of
/// power 1 has power 1 at every frequency. Cubic in the side, which is little for latents.
///
/// # Shapes
///
/// `image`: rows x columns numbers -> as many coefficients, row frequency first. Nothing, unless there are
/// that many numbers.
pub fn dct2(image: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    if rows.checked_mul(columns) != Some(image.len()) || image.is_empty() {
        return Vec::new();
    }
    let (row_basis, column_basis) = (basis(rows), basis(columns));
    // Along each row, then along each column of the result.
    let mut half = vec![0.0; image.len()];
    for (line, out) in image.chunks_exact(columns).zip(half.chunks_exact_mut(columns)) {
        for (wave, slot) in column_basis.chunks_exact(columns).zip(out) {
            *slot = wave.iter().zip(line).map(|(w, x)| w * x).sum();
        }
    }
    let mut whole = vec![0.0; image.len()];
    for (wave, out) in row_basis.chunks_exact(rows).zip(whole.chunks_exact_mut(columns)) {
        for (w, line) in wave.iter().zip(half.chunks_exact(columns)) {
            for (slot, x) in out.iter_mut().zip(line) {
                *slot += w * x;
            }
        }
    }
    whole
}

/// The `n` basis vectors of length `n`, one after the other.
fn basis(n: usize) -> Vec<f64> {
    let size = n as f64;
    let wave = |k: usize| {
        let scale = if k == 0 { (1.0 / size).sqrt() } else { (2.0 / size).sqrt() };
        (0..n).map(move |i| scale * (PI * (i as f64 + 0.5) * k as f64 / size).cos())
    };
    (0..n).flat_map(wave).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cosine_is_one_coefficient() {
        let (rows, columns) = (4, 6);
        let image: Vec<f64> = (0..rows * columns)
            .map(|at| (PI * ((at % columns) as f64 + 0.5) * 2.0 / columns as f64).cos())
            .collect();
        let found = dct2(&image, rows, columns);
        for (at, value) in found.iter().enumerate() {
            let expected = if at == 2 { (4.0f64).sqrt() * (3.0f64).sqrt() } else { 0.0 };
            assert!((value - expected).abs() < 1e-12, "{at}: {value}");
        }
        assert!(dct2(&image, 5, 5).is_empty() && dct2(&[], 0, 0).is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_of_squares_stays(image in prop::collection::vec(-3.0..3.0f64, 15)) {
            let square = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
            prop_assert!((square(&dct2(&image, 3, 5)) - square(&image)).abs() < 1e-9);
        }
    }
}
