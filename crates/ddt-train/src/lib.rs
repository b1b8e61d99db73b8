//! Training DDT: the step, its optimiser, averages of the weights, and runs that resume exactly.
//!
//! A [`Trainer`] owns an [`Objective`] (a network and its loss: [`FlowMatching`] is the paper's), its
//! [`Parameters`], their AdamW [`Moments`] and their averages, and takes one batch a step. An
//! [`EpochOrder`] says which image stands where in a run; a [`LatentDataset`] has the images, in memory or in
//! a [`LatentCache`] on disk. All randomness is a function of (seed, purpose, step, sample), so a
//! [`RunFolder`]'s checkpoint needs no generator state: a run that was killed goes on with the same
//! numbers as one that was not.
//!
//! ```
//! use candle_core::Device;
//! use ddt_model::{DdtConfig, NetworkConfig};
//! use ddt_train::{EpochOrder, FlowConfig, FlowMatching, LatentDataset, TrainConfig, TrainError, Trainer};
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
//! let network = NetworkConfig::from(sizes);
//! let data = LatentDataset::new(vec![0.5; 6 * 2 * 2 * 2], vec![0, 1, 2, 0, 1, 2], (2, 2, 2))?;
//! let cfg = TrainConfig { batch_size: 4, total_images: 8, ..TrainConfig::paper() };
//! let order = EpochOrder::new(cfg.seed, data.len(), false)?;
//! let mut trainer = Trainer::new(cfg, data.sha256(), &Device::Cpu, |vb| {
//!     FlowMatching::new(&network, FlowConfig::PAPER, vb)
//! })?;
//! while !trainer.finished() {
//!     let report = trainer.step(|positions| data.batch(&order.picks(positions), &Device::Cpu))?;
//!     assert!(report.loss.is_finite());
//! }
//! # Ok::<(), TrainError>(())
//! ```

#![forbid(unsafe_code)]

pub use crate::{
    adamw::{AdamWConfig, Moments, adamw_step},
    alignment::{AlignmentConfig, Features, alignment_loss},
    average::average_step,
    config::{Precision, TrainConfig},
    data::{Batch, LatentDataset},
    epoch_order::{EpochOrder, Pick},
    error::TrainError,
    evaluate::evaluate_loss,
    flow_matching::{FlowConfig, FlowMatching},
    latent_cache::{CacheContent, EncodedImages, FeatureShape, LatentCache, LatentCacheWriter},
    noisy_batch::NoisyBatch,
    objective::{Loss, Objective, StepAt},
    parameters::Parameters,
    run_folder::{Rejected, Resumed, RunFolder},
    schedule::LrSchedule,
    trainer::{StepReport, Trainer},
};

mod adamw;
mod alignment;
mod average;
mod checkpoint;
mod config;
mod data;
mod durable;
mod epoch_order;
mod error;
mod evaluate;
mod flow_matching;
mod gradients;
mod latent_cache;
mod noisy_batch;
mod objective;
mod parameters;
mod run_folder;
mod schedule;
mod trainer;
mod update;
