//! Reading what others write, refusing what nobody should, and archives that are killed on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive;
mod hostile;
mod killed;
mod reading;
mod stub;
mod zips;
