#![doc = include_str!("../README.md")]
//!
//! # Contents
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
