//! Training DDT: the step, its optimiser, averages of the weights, and runs that resume exactly.
//!
//! [`run`] is a whole run: it reads [`Settings`] from a TOML file, encodes a folder of photos once, trains on
//! the latents and writes averaged weights. The caller loads the [`Frozen`] networks, decodes samples and
//! shows progress.
//!
//! Its parts serve other runs too. A [`Trainer`] owns an [`Objective`] (a network with its loss:
//! [`FlowMatching`] is the paper's), its [`Parameters`], their AdamW [`Moments`] and averages, and takes a
//! batch per step. An [`EpochOrder`] decides which image comes when; a [`LatentDataset`] holds the images, in
//! memory or in a [`LatentCache`] on disk. All randomness is a function of (seed, purpose, step, sample), so
//! the checkpoints of a [`RunFolder`] need no generator state: a run that was killed continues with the same
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
    batch::{Batch, EpochOrder, Features, NoisyBatch, Pick},
    cache_writer::{EncodedImages, LatentCacheWriter},
    config::{AdamWConfig, AlignmentConfig, FlowConfig, LrSchedule, Precision, TrainConfig},
    data::LatentDataset,
    error::TrainError,
    event::{Event, OnEvent, Samples},
    flow_matching::{FlowMatching, alignment_loss, evaluate_loss},
    latent_cache::{CacheContent, FeatureShape, LatentCache},
    objective::{Loss, Objective, Parameters, StepAt},
    optimiser::{Moments, adamw_step, average_step},
    photos::{Encode, Extract, FeatureExtractor, Frozen, LatentEncoder, Photos, encode_photos, pixels},
    run::run,
    run_folder::{Rejected, Resumed, RunFolder, read_log},
    settings::{
        AlignmentSettings, AutoencoderSettings, ImageSettings, NetworkSettings, Settings, StartSettings,
        WatchSettings,
    },
    tensorboard::EventsFile,
    trainer::{StepReport, Trainer},
    weight_files::Exported,
};
// Parts of this crate's signatures.
pub use ddt_dist::{Alone, Group};
pub use ddt_files::FileSystem;

mod batch;
mod cache_writer;
mod checkpoint;
mod config;
mod data;
mod error;
mod event;
mod flow_matching;
mod latent_cache;
mod objective;
mod optimiser;
mod photos;
mod ranks;
mod run;
mod run_folder;
mod settings;
mod tensorboard;
mod trainer;
mod weight_files;
mod wishes;
