//! Training as a user runs it: it learns, it resumes exactly, and it never keeps what is not finite.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod cache;
mod damage;
mod faults;
mod from_settings;
mod gradients;
mod ranks;
mod resume;
mod runs;
mod steps;
