//! Flow matching without a network: paths, time grids, solvers, guidance and seeded noise.
//!
//! A flow carries noise (`t = 0`) to data (`t = 1`) along `dx/dt = v(x, t)`.
//! A [`VelocityModel`] gives `v`; a [`TimeGrid`] says at which times to ask it; a [`Solver`] turns
//! one step's velocities into the next latents; [`solve`] walks the grid.
//! A network that knows classes is [`ClassConditional`]; [`Guided`] makes a [`VelocityModel`] of it
//! by classifier-free guidance, and asks for the unconditional half only where [`Guidance`] uses it.
//! One whose expensive half can be kept between steps is [`Decoupled`]. [`Autoguided`] guides by a weaker
//! network instead of "no class".
//!
//! Training meets the same nouns: [`LinearPath`] mixes data and noise and gives the velocity target,
//! [`TimeSampling`] draws `t`, [`flow_matching_loss`] compares; [`resample_tokens`] brings the targets of
//! representation alignment onto the network's grid.
//!
//! Randomness is a value. [`CounterNoise`] is a pure function of (seed, purpose, step, sample), and
//! [`TorchGenerator`] gives the numbers of a PyTorch CPU generator; nothing here has global state.
//!
//! # Example
//!
//! The flow towards a single data point, `v = (point - x) / (1 - t)`, ends on it:
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use candle_core::Device;
//! use ddt_flow::{Euler, FromFn, TimeGrid, noise_batch, solve};
//!
//! let model = FromFn::new(|x_t, t| x_t.affine(-1.0, 3.0)?.affine(1.0 / (1.0 - t), 0.0));
//! let grid = TimeGrid::new(10, None, 1.0)?;
//! let noise = noise_batch(7, &[0, 1], (4, 8, 8), &Device::Cpu)?;
//!
//! let latents = solve(&model, &Euler, &grid, &noise, &mut (), &mut |report| {
//!     assert_eq!(report.num_steps, 10);
//!     ControlFlow::Continue(())
//! })?;
//! let distance = (latents - 3.0)?.abs()?.max_all()?.to_scalar::<f32>()?;
//! assert!(distance < 1e-5);
//! # Ok::<(), ddt_flow::FlowError>(())
//! ```
#![forbid(unsafe_code)]

mod autoguidance;
mod error;
mod guidance;
mod loss;
mod model;
mod noise;
mod path;
mod resample_tokens;
mod solve;
mod solver;
mod time_grid;
mod training_time;

pub use autoguidance::Autoguided;
pub use error::{FlowError, Result};
pub use guidance::{Guidance, Guided};
pub use loss::flow_matching_loss;
pub use model::{ClassConditional, Decoupled, Evaluation, FromFn, CfgBatch, VelocityModel};
pub use noise::{CounterNoise, NoiseSource, Purpose, TorchGenerator, noise_batch, torch_randn};
pub use path::LinearPath;
pub use resample_tokens::resample_tokens;
pub use solve::{StepReport, solve};
pub use solver::{
    AdamsBashforth, Dopri5, Dpm2, Euler, EulerMaruyama, Heun, History, LastStep, SOLVER_NAMES, Solver,
    solver_by_name,
};
pub use time_grid::{Step, TimeGrid, shift_time};
pub use training_time::{TimeSampling, logit_normal_time};
