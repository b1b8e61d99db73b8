//! The planner as its users see it: against references, against brute force, and against bad files.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod brute_force;
mod files;
mod goldens;
mod statistic;
