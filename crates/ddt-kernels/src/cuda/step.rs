//! A solver's step, with its numbers in device memory.

use super::device::Cuda;
use super::element::Float;
use super::error::{CudaError, Result, expect};
use super::kernels;
use super::launch::{Arguments, Launch, blocks};
use super::memory::Slice;
use super::patch::Grid;
use super::rows::check_len;

/// Columns of [`Steps`].
const COLUMNS: usize = 4;

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

    fn push(&self, values: &mut Arguments) {
        values.address(self.table.address()).address(self.current.address()).u32(self.len() as u32);
    }
}

/// What [`Cuda::guided_step`] works on.
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
    /// Room for up to `count` steps, all zero. Not while capturing.
    ///
    /// # Errors
    ///
    /// If `count` is 0 or memory is out.
    pub fn steps(&self, count: usize) -> Result<Steps> {
        expect(count > 0 && count < 1 << 28, "steps", || "at least one step".into(), || count.to_string())?;
        Ok(Steps { table: self.upload(&vec![0.0; COLUMNS * count])?, current: self.upload(&[0u32])? })
    }

    /// Writes the numbers of the first steps and goes to step 0: `t`, `dt`, guidance scale, and the number of
    /// channels that are guided (C or more for all). Not while capturing.
    ///
    /// # Errors
    ///
    /// If there are more than there is room for, or if the driver refuses.
    pub fn write_steps(&self, steps: &Steps, numbers: &[[f32; COLUMNS]]) -> Result<()> {
        let rows = numbers.concat();
        self.write(&steps.table.sub(0..rows.len())?, &rows)?;
        self.go_to_step(steps, 0)
    }

    /// Goes to step `index`. Not while capturing.
    ///
    /// # Errors
    ///
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
    ///
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
    ///
    /// If `out` has an odd length, or if the driver refuses.
    pub fn timestep_embedding<T: Float>(&self, steps: &Steps, max_period: f32, out: &Slice<T>) -> Result<()> {
        const NAME: &str = "timestep_embedding";
        let half = out.len() / 2;
        check_len(NAME, &self.device, ("waves, an even number", out), 2 * half)?;
        check_len(NAME, &self.device, ("the table", &steps.table), COLUMNS * steps.len())?;
        let mut values = Arguments::default();
        steps.push(&mut values);
        values.f32(max_period).address(out.address()).u32(half as u32);
        self.launch(&Launch {
            kernel: kernels::TIMESTEP_WAVES[T::INDEX],
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
    ///
    /// If sizes do not divide, if a slice has another length or lies badly, or if the driver refuses.
    pub fn guided_step<T: Float>(&self, arguments: &GuidedStep<'_, T>) -> Result<()> {
        const NAME: &str = "guided_step";
        let GuidedStep { tokens, grid, steps, velocity, x } = *arguments;
        grid.check(NAME)?;
        let copies = grid.copies(NAME, tokens.len(), 2)?;
        check_len(NAME, &self.device, ("tokens", tokens), copies * grid.len())?;
        check_len(NAME, &self.device, ("the table", &steps.table), COLUMNS * steps.len())?;
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
