//! Every fused operation against plain candle operations, values and gradients.

mod activation;
mod attention;
mod edges;
mod modulated;
mod support;
mod threads;
