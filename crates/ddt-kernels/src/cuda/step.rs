//! A solver's step around the network: patches, time, guidance and Euler's update, with its numbers in device memory.

use std::sync::Arc;

use super::device::Cuda;
use super::error::{CudaError, Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch, blocks};
use super::memory::{Device, Float, Slice};
use super::rows::{check_len, check_slice};

/// Sizes of a batch of latents and of the patches they are cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Images, B.
    pub images: usize,
    /// Channels, C.
    pub channels: usize,
    /// H, a multiple of P.
    pub height: usize,
    /// W, a multiple of P.
    pub width: usize,
    /// P.
    pub patch: usize,
}

impl Grid {
    /// Tokens of an image, L = (H / P) (W / P).
    pub fn tokens(&self) -> usize {
        (self.height / self.patch.max(1)) * (self.width / self.patch.max(1))
    }

    /// Elements of a token, C P^2.
    pub fn patch_dim(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Elements of the latents, B C H W.
    pub fn len(&self) -> usize {
        self.images * self.channels * self.height * self.width
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn check(&self, kernel: &'static str) -> Result<()> {
        let Self { channels, height, width, patch, .. } = *self;
        let whole = patch > 0 && height.is_multiple_of(patch) && width.is_multiple_of(patch);
        expect(
            whole && self.len() <= i32::MAX as usize && channels > 0,
            kernel,
            "latents of fewer than 2^31 elements whose sides are multiples of the patch",
            format_args!("{self:?}"),
        )
    }

    /// How many times the batch `tokens` elements hold, 1 or `most`.
    pub(super) fn copies(&self, kernel: &'static str, tokens: usize, most: usize) -> Result<usize> {
        let copies = tokens / self.len().max(1);
        expect(
            tokens == copies * self.len() && (copies == 1 || copies == most || self.is_empty()),
            kernel,
            format_args!("tokens of {} or {} elements", self.len(), most * self.len()),
            tokens,
        )?;
        Ok(copies.max(1))
    }

    pub(super) fn push(&self, values: &mut Arguments) {
        values.u32(self.images as u32).u32(self.channels as u32);
        values.u32(self.height as u32).u32(self.width as u32).u32(self.patch as u32);
    }
}

/// Sets of modulations that a forecast combines, at most; `cu/steps.h` has the same.
pub const MAX_SETS: usize = 3;

/// Columns of [`Steps`]; `cu/steps.h` has the same.
const COLUMNS: usize = 4 + MAX_SETS;

/// The numbers of all steps of a run, and which step it is, in device memory.
///
/// Kernels read the current row, so the same captured graph serves every step: [`Cuda::next_step`] at its
/// end moves on.
#[derive(Debug, Clone)]
pub struct Steps {
    table: Slice<f32>,
    current: Slice<u32>,
}

impl Steps {
    /// The number of steps.
    pub fn len(&self) -> usize {
        self.table.len() / COLUMNS
    }

    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Checks that the steps are of `device`.
    pub(super) fn check(&self, kernel: &'static str, device: &Arc<Device>) -> Result<()> {
        check_slice(kernel, device, &self.table)
    }

    pub(super) fn push(&self, values: &mut Arguments) {
        values.address(self.table.address()).address(self.current.address()).u32(self.len() as u32);
    }
}

/// Arguments of [`Cuda::guided_step`].
#[derive(Debug, Clone, Copy)]
pub struct GuidedStep<'a, T> {
    /// The network's result, (B, L, C P^2), or (2 B, L, C P^2): then class rows first, and guided.
    pub tokens: &'a Slice<T>,
    /// B and the sizes of latents.
    pub grid: Grid,
    /// Where the guidance scale and the step's length are read.
    pub steps: &'a Steps,
    /// If wanted, the velocity after guidance, (B, C, H, W).
    pub velocity: Option<&'a Slice<f32>>,
    /// If given, the latents (B, C, H, W), moved by Euler's step.
    pub x: Option<&'a Slice<f32>>,
}

impl Cuda {
    /// Cuts latents (B, C, H, W) into patches: `out` is (R, L, C P^2), elements in the order channel, row,
    /// column, tokens in row-major order.
    ///
    /// R = B, or R = 2 B: then the second half repeats the first, for both batches of guidance.
    ///
    /// # Errors
    /// If sizes do not divide, if a slice has another length or is not aligned, or if the driver refuses.
    pub fn patchify<T: Float>(&self, latents: &Slice<f32>, grid: Grid, out: &Slice<T>) -> Result<()> {
        const NAME: &str = "patchify";
        grid.check(NAME)?;
        check_len(NAME, &self.device, ("latents", latents), grid.len())?;
        let copies = grid.copies(NAME, out.len(), 2)?;
        check_len(NAME, &self.device, ("tokens", out), copies * grid.len())?;
        let mut values = Arguments::default();
        values.address(latents.address()).address(out.address());
        grid.push(&mut values);
        values.u32(copies as u32);
        self.each(NAME, kernels::PATCHIFY[T::INDEX], grid.len(), values)
    }

    /// Room for up to `count` steps, all zero. Not while capturing.
    ///
    /// # Errors
    /// If `count` is 0 or memory is out.
    pub fn steps(&self, count: usize) -> Result<Steps> {
        expect(count > 0 && count < 1 << 28, "steps", "at least one step", count)?;
        Ok(Steps { table: self.upload(&vec![0.0; COLUMNS * count])?, current: self.upload(&[0u32])? })
    }

    /// Writes the numbers of the first steps and goes to step 0: `t`, `dt`, guidance scale, the number of channels
    /// that are guided (C or more for all), and the weight of each set of modulations in a forecast. Not while
    /// capturing.
    ///
    /// # Errors
    /// If there are more than there is room for, or if the driver refuses.
    pub fn write_steps(&self, steps: &Steps, numbers: &[[f32; COLUMNS]]) -> Result<()> {
        let rows = numbers.concat();
        self.write(&steps.table.sub(0..rows.len())?, &rows)?;
        self.go_to_step(steps, 0)
    }

    /// Goes to step `index`. Not while capturing.
    ///
    /// # Errors
    /// If there is no such step, or if the driver refuses.
    pub fn go_to_step(&self, steps: &Steps, index: usize) -> Result<()> {
        let index = u32::try_from(index).ok().filter(|&index| (index as usize) < steps.len());
        let index = index.ok_or_else(|| CudaError::Argument {
            kernel: "go_to_step",
            expected: format!("a step below {}", steps.len()),
            got: "one beyond".into(),
        })?;
        self.write(&steps.current, &[index])
    }

    /// Moves on to the next step; from the last one, back to step 0.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn next_step(&self, steps: &Steps) -> Result<()> {
        const NAME: &str = "next_step";
        check_len(NAME, &self.device, ("the current step", &steps.current), 1)?;
        let mut values = Arguments::default();
        values.address(steps.current.address()).u32(steps.len() as u32);
        self.launch(&Launch {
            kernel: kernels::NEXT_STEP,
            grid: (1, 1, 1),
            block: 32,
            shared: 0,
            arguments: values,
        })
    }

    /// Cosines, then sines, of the current step's `t exp(-ln(max_period) k / H)`, k = 0 .. H; `out`: (2 H).
    ///
    /// `t` in [0, 1] is not scaled; `max_period` is 10 in DDT, 10,000 in SiT, and H is 128 in both.
    ///
    /// # Errors
    /// If `out` has an odd length, or if the driver refuses.
    pub fn timestep_embedding<T: Float>(&self, steps: &Steps, max_period: f32, out: &Slice<T>) -> Result<()> {
        const NAME: &str = "timestep_embedding";
        let half = out.len() / 2;
        check_len(NAME, &self.device, ("waves, an even number", out), 2 * half)?;
        steps.check(NAME, &self.device)?;
        let mut values = Arguments::default();
        steps.push(&mut values);
        values.f32(max_period).address(out.address()).u32(half as u32);
        self.launch(&Launch {
            kernel: kernels::TIMESTEP_EMBEDDING[T::INDEX],
            grid: (blocks(NAME, half, 128)?, 1, 1),
            block: 128,
            shared: 0,
            arguments: values,
        })
    }

    /// From tokens to latents, guidance and Euler's step.
    ///
    /// ```text
    /// v = v_none + scale (v_class - v_none), or v_class if there is nothing else
    /// x = x + dt v
    /// ```
    ///
    /// In f32, with the current step's numbers. Channels that are not guided take `v_class`.
    ///
    /// # Errors
    /// If sizes do not divide, if a slice has another length or is not aligned, or if the driver refuses.
    pub fn guided_step<T: Float>(&self, arguments: &GuidedStep<'_, T>) -> Result<()> {
        const NAME: &str = "guided_step";
        let GuidedStep { tokens, grid, steps, velocity, x } = *arguments;
        grid.check(NAME)?;
        let copies = grid.copies(NAME, tokens.len(), 2)?;
        check_len(NAME, &self.device, ("tokens", tokens), copies * grid.len())?;
        steps.check(NAME, &self.device)?;
        for (name, latents) in [("velocity", velocity), ("x", x)] {
            latents.map_or(Ok(()), |latents| check_len(NAME, &self.device, (name, latents), grid.len()))?;
        }
        let address = |slice: Option<&Slice<f32>>| slice.map_or(0, Slice::address);
        let mut values = Arguments::default();
        values.address(tokens.address());
        grid.push(&mut values);
        values.u32(copies as u32);
        steps.push(&mut values);
        values.address(address(velocity)).address(address(x));
        self.each(NAME, kernels::GUIDED_STEP[T::INDEX], grid.len(), values)
    }
}
