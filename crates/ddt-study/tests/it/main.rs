//! Studies on a few small photos.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod studies;
