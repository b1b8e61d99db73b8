//! Groups of processes with equal results for any number of them.
//!
//! A [`Launch`] is what torchrun, Open MPI, another MPI or SLURM say in environment variables. [`connect`] turns it
//! into a [`Group`]: [`Alone`] for one process, `Mpi` (feature `mpi`) or `Nccl` (feature `nccl`) for several;
//! [`thread_group`] makes one of threads, for tests. A group exchanges bytes between two ranks; everything else is made of that.
//!
//! Sums of floats depend on their order. Here the order is a binary tree over the terms, [`tree`], whatever the number
//! of ranks: each rank sums an aligned run of the terms, and [`Halving`] joins the runs of neighbours first, as the
//! tree does.
//!
//! [`agree`] is the point at which all ranks meet: either every rank is well, or each learns which rank failed and why.

#![forbid(unsafe_code)]

#[cfg(feature = "mpi")]
pub use crate::mpi_group::Mpi;
#[cfg(feature = "nccl")]
pub use crate::nccl_group::Nccl;
pub use crate::{
    agree::{MAX_PAYLOAD, RankFailed, agree, broadcast},
    connect::connect,
    error::DistError,
    group::{Alone, Group},
    halving::Halving,
    launch::Launch,
    launcher::{Launcher, Transport},
    threads::{ThreadRank, thread_group},
    tree::{own_run, tree},
};
#[cfg(feature = "nccl-stand-in")]
pub use ddt_kernels::nccl::stand_in as nccl_stand_in;

mod agree;
mod connect;
mod error;
mod group;
mod halving;
mod launch;
mod launcher;
#[cfg(any(feature = "nccl", test))]
mod liveness;
#[cfg(any(feature = "nccl", test))]
mod meeting;
#[cfg(feature = "mpi")]
mod mpi_group;
#[cfg(feature = "nccl")]
mod nccl_group;
mod threads;
mod tree;

/// Runs the README's example as a test.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;
