//! Folders, files and bytes as users have them.

#![allow(clippy::unwrap_used, reason = "a test that fails should stop")]

mod bytes;
mod crop;
mod folder;
mod images;
mod loader;
