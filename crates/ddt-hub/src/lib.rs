//! Published weights and where the Hugging Face hub's tools keep them on this machine.
//!
//! [`Release`] names the published networks, [`PublishedAutoencoder`] their autoencoders, [`HubFile`] a file on the hub,
//! and [`Hub`] the local cache, which it finds as `huggingface_hub` does. This crate has no dependencies and opens no
//! socket; `ddt-fetch` downloads.
//!
//! ```
//! use ddt_hub::{Hub, Release};
//!
//! let hub = Hub::from_env();
//! match hub.find(&Release::DdtXl2R256.network()) {
//!     Some(path) => println!("found {}", path.display()),
//!     None => println!("not in {}; fetch it with: ddt fetch {}", hub.cache.display(), Release::DdtXl2R256),
//! }
//! ```

#![forbid(unsafe_code)]

mod environment;
mod hub_file;
mod published;

pub use crate::{
    environment::Hub,
    hub_file::{HubFile, InvalidHubFile},
    published::{PublishedAutoencoder, Release},
};
