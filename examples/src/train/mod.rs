//! The training program, part by part: settings, photos to latents, batches, the loop and what it reports.

pub mod batches;
pub mod export;
pub mod frozen;
pub mod photos;
pub mod run;
pub mod samples;
pub mod settings;
pub mod tensorboard;
pub mod watch;
