//! Centre crop of ADM (Dhariwal and Nichol 2021), which ImageNet models are trained and judged on.
//!
//! Resampling is separable and in fixed point, the arithmetic Pillow uses for 8-bit images, so that results
//! are equal to the last bit:
//!
//! ```text
//! scale = in / out;  f = max(scale, 1);  center_i = (i + 0.5) scale
//! w_ij = filter((j + 0.5 - center_i) / f), normalised over j, in 22 fractional bits
//! mid = round(sum_j w_ij in_j) along rows, clamped to bytes;  out = the same along columns of mid
//! ```

use std::ops::Range;

use ddt_picture::Rgb8;

use crate::error::ImageError;

/// Largest side of a crop, in pixels.
pub(crate) const MAX_CROP_SIZE: u32 = 8192;

/// Crops the middle square and scales it to `size` pixels a side.
///
/// ```text
/// while min(w, h) >= 2 size:  (w, h) = (w div 2, h div 2), box filter
/// scale = size / min(w, h);   (w, h) = (round(w scale), round(h scale)), bicubic, a = -0.5, antialiased
/// crop at ((w - size) div 2, (h - size) div 2)
/// ```
///
/// Sides are rounded half to even, as Python does. From the same decoded pixels the result equals what the
/// published preprocessing gives with Pillow up to 12.3.0, to the last bit; only JPEG decoders differ. (For pictures
/// a hundred times as tall as wide, and for many tall ones since version 13, Pillow resamples columns first,
/// which moves last bits.) An image of `size x size` comes back as it is.
///
/// # Errors
/// [`ImageError`] for a size of 0 or above 8192.
pub fn center_crop(image: &Rgb8, size: u32) -> Result<Rgb8, ImageError> {
    if !(1..=MAX_CROP_SIZE).contains(&size) {
        return Err(ImageError(format!("expected a crop size of 1 to {MAX_CROP_SIZE} pixels, got {size}")));
    }
    let side = size as usize;
    let (mut width, mut height) = (image.width() as usize, image.height() as usize);
    let mut shrunk: Option<Vec<u8>> = None;
    while width.min(height) >= 2 * side {
        let source = Source { width, height, bytes: shrunk.as_deref().unwrap_or(image.as_bytes()) };
        (width, height) = (width / 2, height / 2);
        let whole = Window { columns: 0..width, rows: 0..height };
        shrunk = Some(resample(source, (width, height), &whole, Filter::Box));
    }
    let source = Source { width, height, bytes: shrunk.as_deref().unwrap_or(image.as_bytes()) };
    let scale = f64::from(size) / width.min(height) as f64;
    let scaled = |side: usize| (side as f64 * scale).round_ties_even() as usize;
    let (width, height) = (scaled(width), scaled(height));
    let middle = |length: usize| (length - side) / 2..(length - side) / 2 + side;
    let window = Window { columns: middle(width), rows: middle(height) };
    let bytes = resample(source, (width, height), &window, Filter::Bicubic);
    Rgb8::new(size, size, bytes).map_err(|it| ImageError(it.to_string()))
}

/// Bits after the point: 8 bits of pixel, 22 of weight and 2 to spare make 32.
const FRACTION: u32 = 22;
const HALF: i32 = 1 << (FRACTION - 1);

/// A reconstruction filter.
#[derive(Debug, Clone, Copy)]
enum Filter {
    /// The mean of what an output pixel covers.
    Box,
    /// Cubic convolution with a = -0.5.
    Bicubic,
}

/// Bytes (height, width, 3), borrowed.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    width: usize,
    height: usize,
    bytes: &'a [u8],
}

/// Part of the resampled image, in its pixels.
#[derive(Debug, Clone)]
struct Window {
    columns: Range<usize>,
    rows: Range<usize>,
}

/// Resamples to `(width, height)` and returns a window of the result, (rows, columns, 3).
fn resample(source: Source<'_>, (width, height): (usize, usize), window: &Window, filter: Filter) -> Vec<u8> {
    let columns = Taps::new(filter, source.width, width, window.columns.clone());
    let rows = Taps::new(filter, source.height, height, window.rows.clone());
    let used = rows.span();
    let line = 3 * source.width;
    let bytes = &source.bytes[used.start * line..used.end * line];
    pulp::Arch::new().dispatch(Passes { bytes, line, columns, rows, offset: used.start })
}

/// Both passes, compiled for the processor's instruction set.
struct Passes<'a> {
    /// The input rows needed.
    bytes: &'a [u8],
    line: usize,
    columns: Taps,
    rows: Taps,
    /// Number of the first input row.
    offset: usize,
}

impl pulp::NullaryFnOnce for Passes<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        let narrowed = along_rows(self.bytes, self.line, &self.columns);
        along_columns(&narrowed, 3 * self.columns.outputs.len(), &self.rows, self.offset)
    }
}

impl Filter {
    /// Half the width of its support.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Self::Box => f64::from(u8::from(-0.5 < x && x <= 0.5)),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// For each output pixel, its first input and the weights.
#[derive(Debug)]
struct Taps {
    /// First input, and range in `weights`.
    outputs: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(filter: Filter, inputs: usize, outputs: usize, window: Range<usize>) -> Self {
        let scale = inputs as f64 / outputs as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut taps = Self { outputs: Vec::with_capacity(window.len()), weights: Vec::new() };
        let mut exact = Vec::new();
        for output in window {
            let center = (output as f64 + 0.5) * scale;
            // Casts cut off the fraction, and what is negative becomes zero.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(inputs);
            exact.clear();
            exact.extend((first..end).map(|j| filter.at((j as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = exact.iter().sum();
            let start = taps.weights.len();
            taps.weights.extend(exact.iter().map(|it| {
                let scaled = it / sum * f64::from(1_u32 << FRACTION);
                (scaled + 0.5_f64.copysign(scaled)) as i32
            }));
            taps.outputs.push((first, start..taps.weights.len()));
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.outputs.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }

    /// Inputs that the outputs of the window need.
    fn span(&self) -> Range<usize> {
        let start = self.outputs.iter().map(|it| it.0).min().unwrap_or(0);
        let end = self.outputs.iter().map(|it| it.0 + it.1.len()).max().unwrap_or(0);
        start..end
    }
}

/// Rows that [`along_rows`] processes together.
const ROWS: usize = 32;
/// Bytes of one column of them.
const LANES: usize = 3 * ROWS;

#[inline(always)]
fn along_rows(bytes: &[u8], line: usize, taps: &Taps) -> Vec<u8> {
    let out_line = 3 * taps.outputs.len();
    let mut out = vec![0; bytes.len() / line * out_line];
    // Columns of several rows are adjacent, so that a tap is one operation on a full register.
    let mut columns = vec![[0_u8; LANES]; line / 3];
    for (rows, out) in bytes.chunks(ROWS * line).zip(out.chunks_mut(ROWS * out_line)) {
        for (lane, row) in rows.chunks_exact(line).enumerate() {
            for (column, pixel) in columns.iter_mut().zip(row.chunks_exact(3)) {
                column[3 * lane..3 * lane + 3].copy_from_slice(pixel);
            }
        }
        for (x, (first, weights)) in taps.iter().enumerate() {
            let mut sums = [HALF; LANES];
            for (column, weight) in columns[first..].iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(column) {
                    *sum += weight * i32::from(*value);
                }
            }
            let pixels = sums.map(to_byte);
            for (row, pixel) in out.chunks_exact_mut(out_line).zip(pixels.chunks_exact(3)) {
                row[3 * x..3 * x + 3].copy_from_slice(pixel);
            }
        }
    }
    out
}

/// `bytes` begins at input row `offset`.
#[inline(always)]
fn along_columns(bytes: &[u8], line: usize, taps: &Taps, offset: usize) -> Vec<u8> {
    let mut out = vec![0; line * taps.outputs.len()];
    let mut sums = vec![0; line];
    for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(line)) {
        sums.fill(HALF);
        for (row, weight) in bytes[(first - offset) * line..].chunks_exact(line).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(*value);
            }
        }
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = to_byte(*sum));
    }
    out
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_changes_nothing_and_a_box_of_half_size_is_a_rounded_mean() {
        let bytes: Vec<u8> = (0..6 * 4 * 3).map(|it| (it * 37 % 256) as u8).collect();
        let source = Source { width: 6, height: 4, bytes: &bytes };
        let all = |width, height| Window { columns: 0..width, rows: 0..height };
        assert_eq!(resample(source, (6, 4), &all(6, 4), Filter::Bicubic), bytes);
        let half = resample(source, (3, 2), &all(3, 2), Filter::Box);
        let mean = |a: u8, b: u8| (u16::from(a) + u16::from(b)).div_ceil(2) as u8;
        assert_eq!(half[0], mean(mean(bytes[0], bytes[3]), mean(bytes[18], bytes[21])));
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let bytes: Vec<u8> = (0..13 * 11 * 3).map(|it| (it * it % 251) as u8).collect();
        let source = Source { width: 13, height: 11, bytes: &bytes };
        let whole = resample(source, (8, 9), &Window { columns: 0..8, rows: 0..9 }, Filter::Bicubic);
        let part = resample(source, (8, 9), &Window { columns: 3..7, rows: 2..8 }, Filter::Bicubic);
        for (row, part) in part.chunks_exact(4 * 3).enumerate() {
            let start = ((row + 2) * 8 + 3) * 3;
            assert_eq!(part, &whole[start..start + 12]);
        }
    }

    #[test]
    fn weights_of_a_pixel_sum_to_one() {
        for (filter, inputs, outputs) in
            [(Filter::Bicubic, 500, 341), (Filter::Box, 7, 3), (Filter::Bicubic, 1, 9)]
        {
            for (_, weights) in Taps::new(filter, inputs, outputs, 0..outputs).iter() {
                let sum: i32 = weights.iter().sum();
                assert!((sum - (1 << FRACTION)).abs() <= weights.len() as i32, "{filter:?} {sum}");
            }
        }
    }
}
