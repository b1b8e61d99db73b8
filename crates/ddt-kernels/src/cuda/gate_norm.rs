//! Gate, bias and residual, then norm and modulation.

use super::device::Cuda;
use super::error::{Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch, blocks};
use super::memory::{Float, Slice};
use super::rows::{Rows, check_len};
use super::step::{MAX_SETS, Steps};

const NAME: &str = "gate_norm";
const WARPS: usize = 4;
/// Elements of a row that a warp holds with one chunk per lane.
const CHUNK: usize = 256;

/// Arguments of [`Cuda::gate_norm`].
#[derive(Debug, Clone, Copy)]
pub struct GateNorm<'a, T> {
    /// The residual stream, (T, D).
    pub x: &'a Slice<T>,
    /// D.
    pub width: usize,
    /// The branch that joins the stream, if any.
    pub branch: Option<Branch<'a, T>>,
    /// The normed and modulated stream, if it is wanted.
    pub modulate: Option<Modulate<'a, T>>,
    /// How gate, shift and scale are combined from a few sets of them; without it they are used as they are.
    pub forecast: Option<Forecast<'a>>,
}

/// A branch on its way into the residual stream.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a, T> {
    /// Result of the last GEMM of the branch, (T, D).
    pub y: &'a Slice<T>,
    /// The bias that the GEMM did not add, (D).
    pub bias: Option<&'a Slice<T>>,
    /// The gate, D columns.
    pub gate: Rows<'a, T>,
    /// The stream with the branch, (T, D); may be the stream.
    pub sum: &'a Slice<T>,
}

/// How the stream is normed.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a, T> {
    /// By its root mean square, times a weight (D).
    Rms(&'a Slice<T>),
    /// By its mean and variance, without weight.
    Layer,
}

/// Norm and modulation of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Modulate<'a, T> {
    /// The norm.
    pub norm: Norm<'a, T>,
    /// The shift, D columns.
    pub shift: Rows<'a, T>,
    /// The scale, D columns.
    pub scale: Rows<'a, T>,
    /// Added to the mean of squares.
    pub eps: f32,
    /// The result, (T, D).
    pub out: &'a Slice<T>,
}

/// Gate, shift and scale as weighted sums, computed in f32 where they are read.
///
/// ```text
/// gate = sum_i weight_i gate_i
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Forecast<'a> {
    /// How many sets are combined, 2 or 3; no others are read.
    pub sets: usize,
    /// From an element of one set to that of the next; [`Rows`] name the elements of the first.
    pub stride: usize,
    /// Where the weights are read.
    pub steps: &'a Steps,
}

impl<T> GateNorm<'_, T> {
    /// Whether there is a kernel for rows of this width.
    pub fn takes(width: usize) -> bool {
        width > 0 && width.is_multiple_of(8) && width <= CHUNK * kernels::GATE_NORM.len()
    }
}

impl Cuda {
    /// Norms and modulates a stream: [`gate_norm`](Self::gate_norm) without a branch. `shift_scale` has the shift in its
    /// first half of columns, and the scale in the other.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn norm_modulate<T: Float>(
        &self,
        x: &Slice<T>,
        norm: Norm<'_, T>,
        shift_scale: Rows<'_, T>,
        width: usize,
        eps: f32,
        out: &Slice<T>,
    ) -> Result<()> {
        let scale = Rows { first: shift_scale.first + width, ..shift_scale };
        let modulate = Some(Modulate { norm, shift: shift_scale, scale, eps, out });
        self.gate_norm(&GateNorm { x, width, branch: None, modulate, forecast: None })
    }

    /// Joins a gated branch to the residual stream, and norms and modulates the stream.
    ///
    /// ```text
    /// sum = x + gate * (y + bias)
    /// out = norm(sum) * (1 + scale) + shift
    /// ```
    ///
    /// The stream is normed before it is rounded to its type. Either half may be left out.
    ///
    /// # Errors
    /// If D is no multiple of 8 or above 2048, if a slice has another length or is not aligned, if there are not 2 or 3
    /// sets in a forecast, or if the driver refuses.
    pub fn gate_norm<T: Float>(&self, arguments: &GateNorm<'_, T>) -> Result<()> {
        let GateNorm { x, width, branch, modulate, forecast } = *arguments;
        expect(
            GateNorm::<T>::takes(width),
            NAME,
            format_args!("a width that is a multiple of 8 up to {}", CHUNK * kernels::GATE_NORM.len()),
            width,
        )?;
        let tokens = x.len() / width;
        let device = &self.device;
        check_len(NAME, device, ("x, whole rows of the width", x), tokens * width)?;
        let (sets, set_stride) = forecast.map_or((1, 0), |it| (it.sets, it.stride));
        if let Some(Forecast { steps, .. }) = forecast {
            expect((2..=MAX_SETS).contains(&sets), NAME, format_args!("2 to {MAX_SETS} sets"), sets)?;
            steps.check(NAME, device)?;
        }
        let check_sets = |rows: Rows<'_, T>| {
            (0..sets).try_for_each(|set| {
                let first = rows.first.saturating_add(set.saturating_mul(set_stride));
                Rows { first, ..rows }.check(NAME, device, (tokens, width))
            })
        };
        let mut flags = 0;
        let mut values = Arguments::default();
        let sum = branch.map_or(0, |it| it.sum.address());
        values.address(x.address()).address(sum).u32(tokens as u32).u32(width as u32);
        let nothing = Rows::one(x);
        let (gate, y, bias) = match branch {
            None => (nothing, None, None),
            Some(Branch { y, bias, gate, sum }) => {
                flags |= 1;
                check_sets(gate)?;
                check_len(NAME, device, ("y", y), x.len())?;
                check_len(NAME, device, ("sum", sum), x.len())?;
                (gate, Some(y), bias)
            }
        };
        let (weight, shift, scale, eps, out) = match modulate {
            None => (None, nothing, nothing, 0.0, None),
            Some(Modulate { norm, shift, scale, eps, out }) => {
                check_sets(shift)?;
                check_sets(scale)?;
                check_len(NAME, device, ("out", out), x.len())?;
                match norm {
                    Norm::Rms(weight) => {
                        flags |= 2;
                        (Some(weight), shift, scale, eps, Some(out))
                    }
                    Norm::Layer => {
                        flags |= 4;
                        (None, shift, scale, eps, Some(out))
                    }
                }
            }
        };
        for (name, row) in [("bias", bias), ("weight", weight)] {
            row.map_or(Ok(()), |row| check_len(NAME, device, (name, row), width))?;
        }
        let address = |slice: Option<&Slice<T>>| slice.map_or(0, Slice::address);
        values.address(address(y)).address(address(bias));
        gate.push(&mut values);
        values.address(address(weight));
        shift.push(&mut values);
        scale.push(&mut values);
        values.f32(eps).address(address(out)).u32(flags);
        values.u32(sets as u32).address(set_stride as u64);
        match forecast {
            Some(Forecast { steps, .. }) => steps.push(&mut values),
            None => _ = values.address(0).address(0).u32(0),
        }
        self.launch(&Launch {
            kernel: kernels::GATE_NORM[width.div_ceil(CHUNK) - 1][T::INDEX],
            grid: (blocks(NAME, 32 * tokens, 32 * WARPS)?, 1, 1),
            block: 32 * WARPS as u32,
            shared: 0,
            arguments: values,
        })
    }
}
