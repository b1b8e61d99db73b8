//! The network as its users meet it: against golden outputs, in training, when sharing, on disk.

mod files;
mod golden;
mod gradients;
mod networks;
mod sharing;
