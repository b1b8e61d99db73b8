//! Groups of processes with equal results for any number of them.
//!
//! A [`Launch`] is what torchrun, Open MPI, another MPI or SLURM say in environment variables. [`connect`] turns it
//! into a [`Group`]: [`Alone`] for one process, `Mpi` (feature `mpi`) for several; [`thread_group`] makes one of
//! threads, for tests. A group exchanges bytes between two ranks; everything else is made of that.
//!
//! Sums of floats depend on their order. Here the order is a binary tree over the terms, [`tree`], whatever the number
//! of ranks: each rank sums an aligned run of the terms, and [`Halving`] joins the runs of neighbours first, as the
//! tree does.
//!
//! [`agree`] is the point at which all ranks meet: either every rank is well, or each learns which rank failed and why.

#![forbid(unsafe_code)]

#[cfg(feature = "mpi")]
pub use crate::mpi_group::Mpi;
pub use crate::{
    agree::{MAX_PAYLOAD, RankFailed, agree},
    error::DistError,
    group::{Alone, Group},
    halving::Halving,
    launch::{Launch, connect},
    launcher::Launcher,
    threads::{ThreadRank, thread_group},
    tree::{own_run, tree},
};

mod agree;
mod error;
mod group;
mod halving;
mod launch;
mod launcher;
#[cfg(feature = "mpi")]
mod mpi_group;
mod threads;
mod tree;

/// Runs the README's example as a test.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;
