//! A small convolutional network that tells CIFAR-10's classes apart.
//!
//! Inception's weights have to be downloaded; these are trained by `train_classifier`. Distances in its feature
//! space compare this project's samples with each other and with photos, and with nothing measured elsewhere.

pub mod network;
pub mod objective;
pub mod program;
