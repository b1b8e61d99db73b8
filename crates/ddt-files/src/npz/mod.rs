//! Arrays in npy and npz files: a bounded reader, a writer, and archives of images that several processes fill.
//!
//! - [`NpzFile`] is an opened `.npz` (zip and zip64, stored or deflated) or `.npy` (versions 1 to 3) file;
//!   [`NpyArray`] is one array of it, whose [`NpyHeader`] says type and shape. [`Rows`] reads some of its rows
//!   into the caller's memory, so the size of an array does not matter.
//! - [`write_npz`] writes arrays that fit in memory.
//! - [`ImageArchive`] writes images that do not, from many processes, any of which may be killed at any moment.
//!   An [`ArchiveJob`] describes the archive; a [`Shard`] is one process of several; a [`Claim`] is a batch that
//!   no other process makes. The finished file has the same bytes whatever happened on the way.
//!
//! **Promise:** any bytes give values or a [`FileError`](crate::FileError). Objects (pickles) are never read,
//! memory is bounded by fixed limits, by the size of the file and by what the caller asks for, no input panics,
//! and no file of somebody else is overwritten.
//!
//! # Example
//!
//! ```
//! use ddt_files::npz::{ArchiveJob, ArrayData, ImageArchive, Next, NpzFile, Shard, write_npz};
//!
//! let folder = tempfile::tempdir()?;
//! let statistics = folder.path().join("statistics.npz");
//! write_npz(&statistics, &[("mu", &[2], ArrayData::F64(&[0.5, 1.5]))])?;
//! assert_eq!(NpzFile::open(&statistics)?.array("mu")?.f64_values()?, [0.5, 1.5]);
//!
//! let path = folder.path().join("images.npz");
//! let protocol = serde_json::json!({ "seed": 7 });
//! let job = ArchiveJob { count: 5, height: 2, width: 4, batch: 2, protocol };
//! let mut archive = ImageArchive::open(&path, &job)?.ok_or("it is complete already")?;
//! while let Next::Batch(claim) = archive.next(Shard::ALONE)? {
//!     let grey = vec![99; claim.images().len() * job.image_bytes()];
//!     archive.write(claim, &grey)?;
//! }
//! archive.finish(&[0, 1, 0, 1, 0])?;
//! assert_eq!(NpzFile::open(&path)?.array("arr_0")?.shape(), [5, 2, 4, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use archive::{Claim, ImageArchive, Next};
pub use header::NpyHeader;
pub use job::{ArchiveJob, Shard};
pub use npz_file::{ArrayData, NamedArray, NpyArray, NpzFile, Rows, write_npz};

mod archive;
mod header;
mod job;
mod npz_file;
