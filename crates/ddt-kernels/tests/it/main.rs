//! Every fused operation against plain candle operations, values and gradients.

mod activation;
mod attention;
mod block;
mod edges;
mod linear;
mod modulated;
mod packed;
mod sums;
mod support;
mod threads;
