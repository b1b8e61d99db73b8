//! Arguments of launchers: rows that apply to tokens (modulations, gates, biases), and checks of slices.

use std::sync::Arc;

use super::error::{Result, expect};
use super::launch::Arguments;
use super::memory::{Device, Element, Float, Slice};

/// Some columns of a matrix, whose row `token / tokens_per_row` applies to a token.
///
/// One row per image: `tokens_per_row = L`; one per token: 1; one for all, such as a bias: [`Rows::one`].
/// `first` and `stride` pick a shift, scale or gate out of rows that hold those of several blocks.
#[derive(Debug)]
pub struct Rows<'a, T> {
    /// The matrix, in row-major order.
    pub data: &'a Slice<T>,
    /// From one row to the next, in elements.
    pub stride: usize,
    /// The first column that applies.
    pub first: usize,
    /// How many consecutive tokens share a row.
    pub tokens_per_row: usize,
}

impl<T> Clone for Rows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Rows<'_, T> {}

impl<'a, T: Float> Rows<'a, T> {
    /// One row that applies to every token.
    pub fn one(data: &'a Slice<T>) -> Self {
        Self { data, stride: 0, first: 0, tokens_per_row: u32::MAX as usize }
    }

    /// Checks that `width` columns for `tokens` tokens exist and start where 16-byte reads may.
    pub(super) fn check(
        &self,
        kernel: &'static str,
        device: &Arc<Device>,
        (tokens, width): (usize, usize),
    ) -> Result<()> {
        check_slice(kernel, device, self.data)?;
        let Self { data, stride, first, tokens_per_row } = *self;
        expect(
            tokens_per_row > 0 && tokens_per_row <= u32::MAX as usize && stride <= i32::MAX as usize,
            kernel,
            "between 1 and 2^32 - 1 tokens a row and a stride below 2^31",
            format_args!("{tokens_per_row} tokens a row and stride {stride}"),
        )?;
        expect(
            first.is_multiple_of(T::LANES) && stride.is_multiple_of(T::LANES),
            kernel,
            format_args!("rows whose stride and first column are multiples of {}", T::LANES),
            format_args!("stride {stride}, first column {first}"),
        )?;
        let rows = tokens.div_ceil(tokens_per_row);
        let needed =
            rows.saturating_sub(1).saturating_mul(stride).saturating_add(first).saturating_add(width);
        expect(
            tokens == 0 || needed <= data.len(),
            kernel,
            format_args!("rows of {needed} elements for {tokens} tokens, {width} columns from {first}"),
            format_args!("{} elements", data.len()),
        )
    }

    pub(super) fn push(&self, arguments: &mut Arguments) {
        arguments.address(self.data.address() + (self.first * size_of::<T>()) as u64);
        arguments.u32(self.stride as u32);
        arguments.u32(self.tokens_per_row as u32);
    }
}

/// Checks that `slice` is of `device` and starts where 16-byte reads may.
pub(super) fn check_slice<T: Element>(
    kernel: &'static str,
    device: &Arc<Device>,
    slice: &Slice<T>,
) -> Result<()> {
    expect(Arc::ptr_eq(device, slice.device()), kernel, "memory of this device", "memory of another")?;
    expect(
        slice.address().is_multiple_of(16),
        kernel,
        "slices at multiples of 16 bytes",
        format_args!("address {:#x}", slice.address()),
    )
}

/// [`check_slice`], and that there are exactly or at least `len` elements.
pub(super) fn check_len<T: Element>(
    kernel: &'static str,
    device: &Arc<Device>,
    (name, slice): (&'static str, &Slice<T>),
    len: usize,
) -> Result<()> {
    check_slice(kernel, device, slice)?;
    expect(slice.len() == len, kernel, format_args!("{len} elements of {name}"), slice.len())
}
