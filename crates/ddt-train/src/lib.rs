//! Training DDT: the step, its optimiser, averages of the weights, and runs that resume exactly.
//!
//! A [`Trainer`] owns a network's [`Parameters`], their AdamW [`Moments`] and their averages, and takes
//! one [`Batch`] a step. A [`LatentDataset`] hands out batches in an order that depends on seed and
//! epoch alone, and knows its own hash; all other randomness is a function of (seed, purpose, step, sample), so a
//! [`RunFolder`]'s checkpoint needs no generator state: a run that was killed goes on with the same
//! numbers as one that was not.
//!
//! ```
//! use candle_core::Device;
//! use ddt_model::DdtConfig;
//! use ddt_train::{LatentDataset, TrainConfig, Trainer};
//!
//! let sizes = DdtConfig {
//!     in_channels: 2,
//!     patch_size: 1,
//!     hidden_size: 16,
//!     num_heads: 2,
//!     num_encoder_blocks: 1,
//!     num_decoder_blocks: 1,
//!     num_classes: 3,
//! };
//! let data = LatentDataset::new(vec![0.5; 6 * 2 * 2 * 2], vec![0, 1, 2, 0, 1, 2], (2, 2, 2))?;
//! let cfg = TrainConfig { batch_size: 4, total_images: 8, ..TrainConfig::paper() };
//! let mut trainer = Trainer::new(cfg, &sizes, &Device::Cpu)?;
//! while !trainer.finished() {
//!     let report = trainer.step(&data)?;
//!     assert!(report.loss.is_finite());
//! }
//! # Ok::<(), ddt_train::TrainError>(())
//! ```

#![forbid(unsafe_code)]

pub use crate::{
    adamw::{AdamWConfig, Moments, adamw_step},
    average::average_step,
    config::TrainConfig,
    data::{Batch, LatentDataset},
    error::TrainError,
    loss::{NoisyBatch, evaluate_loss},
    parameters::Parameters,
    run_folder::{Rejected, Resumed, RunFolder},
    schedule::LrSchedule,
    trainer::{StepReport, Trainer},
};

mod adamw;
mod average;
mod checkpoint;
mod config;
mod data;
mod durable;
mod error;
mod loss;
mod parameters;
mod run_folder;
mod schedule;
mod trainer;
