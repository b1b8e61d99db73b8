//! Training as a user runs it: it learns, it resumes exactly, and it never keeps what is not finite.

mod resume;
mod runs;
mod steps;
