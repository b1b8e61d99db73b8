//! Large matrix products, `C = A B`, in registers: one design for f32 and bf16 and for every instruction set.
//!
//! The right factor is *packed* once into panels as wide as two lane groups ([`Packed`]); the left factor is
//! read where it lies, with any strides ([`Left`]), one element at a time.
//! A [`Unit`](unit::Unit) is the arithmetic of one step of depth: one f32, or a pair of bf16 summed in f32.
//! A tile of up to 14 rows by one panel stays in registers over a range of depths ([`tile`]); what becomes
//! of it is up to a [`Finish`].
//!
//! Every element of the result is summed in the order of depth, by one task: neither the number of threads
//! nor the cut into tasks changes a bit of it.

mod ceiling;
mod finish;
mod gated_sum;
mod pack;
mod product;
mod swiglu;
pub(super) mod tile;
pub(super) mod unit;

pub(crate) use ceiling::ceiling;
pub(crate) use finish::{Destination, Store};
pub(crate) use gated_sum::GatedSum;
pub(crate) use pack::{Packed, Right};
pub(crate) use product::{Left, add_product, collect, product, run};
pub(crate) use swiglu::SwiGlu;
pub(crate) use unit::Factor;
