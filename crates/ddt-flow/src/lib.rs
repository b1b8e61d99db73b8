//! Flow matching without a network: paths, time grids, solvers, guidance and seeded noise.
//!
//! A flow carries noise (`t = 0`) to data (`t = 1`) along `dx/dt = v(x, t)`. A [`VelocityModel`] computes `v`,
//! a [`TimeGrid`] holds the times, a [`Solver`] makes one step, and [`solve`] walks the grid.
//!
//! A network with class labels is [`ClassConditional`]; [`Guided`] turns it into a [`VelocityModel`] by
//! classifier-free guidance and runs the unconditional batch only where [`Guidance`] needs it. [`Autoguided`]
//! guides by a second network instead. A network whose encoder output is cached between steps is
//! [`Decoupled`].
//!
//! For training, [`LinearPath`] mixes data and noise and gives the velocity target, [`TimeSampling`] samples
//! `t`, and [`flow_matching_loss`] compares velocities; [`resample_tokens`] brings the targets of
//! representation alignment onto the network's grid.
//!
//! There is no global random state: [`CounterNoise`] is a pure function of (seed, purpose, step, sample), and
//! [`TorchGenerator`] reproduces a PyTorch CPU generator.
//!
//! # Example
//!
//! The flow towards a single data point, `v = (point - x) / (1 - t)`, ends on it:
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use candle_core::Device;
//! use ddt_flow::{EULER, FromFn, TimeGrid, noise_batch, solve};
//!
//! let model = FromFn::new(|x_t, t| x_t.affine(-1.0, 3.0)?.affine(1.0 / (1.0 - t), 0.0));
//! let grid = TimeGrid::new(10, None, 1.0)?;
//! let noise = noise_batch(7, &[0, 1], (4, 8, 8), &Device::Cpu)?;
//!
//! let latents = solve(&model, &EULER, &grid, &noise, &mut (), &mut |report| {
//!     assert_eq!(report.num_steps, 10);
//!     ControlFlow::Continue(())
//! })?;
//! let distance = (latents - 3.0)?.abs()?.max_all()?.to_scalar::<f32>()?;
//! assert!(distance < 1e-5);
//! # Ok::<(), ddt_flow::FlowError>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod guidance;
mod model;
mod noise;
mod path;
mod resample_tokens;
mod solve;
mod solver;
mod time_grid;

pub use error::{FlowError, Result};
pub use guidance::{Autoguided, Guidance, Guided};
pub use model::{CfgBatch, ClassConditional, Decoupled, Evaluation, FromFn, VelocityModel};
pub use noise::{CounterNoise, NoiseSource, Purpose, TorchGenerator, noise_batch, torch_randn};
pub use path::{LinearPath, TimeSampling, flow_matching_loss, logit_normal_time};
pub use resample_tokens::resample_tokens;
pub use solve::{StepReport, solve};
pub use solver::{
    AdamsBashforth, Dopri5, Dpm2, EULER, EulerMaruyama, HEUN, History, LastStep, RungeKutta, SOLVER_NAMES,
    Solver, Velocity, solver_by_name,
};
pub use time_grid::{Step, TimeGrid, shift_time};
