//! What can go wrong, with the path where there is one.

use std::{io, path::PathBuf};

/// Why bytes are not an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No bytes at all.
    #[error("the file is empty, expected a JPEG or PNG")]
    Empty,
    /// Bytes that begin like no image format.
    #[error("expected a JPEG or PNG, the first bytes are {first:02x?}")]
    NotAnImage {
        /// At most eight of them.
        first: Vec<u8>,
    },
    /// A format or a kind of image that is not decoded.
    #[error("expected an 8-bit JPEG or a PNG, got {what}; convert it first")]
    Unsupported {
        /// What it is.
        what: &'static str,
    },
    /// A file larger than [`Limits::max_bytes`](crate::Limits::max_bytes).
    #[error("the file has {bytes} bytes, the limit is {max_bytes}")]
    TooManyBytes {
        /// Size of the file, or of what was read of it.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// An image larger than [`Limits::max_pixels`](crate::Limits::max_pixels).
    #[error("the image is {width} x {height}, the limit is {max_pixels} pixels")]
    TooManyPixels {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// A file that ends before its image does.
    #[error("the {format} file is cut off, its image is incomplete")]
    Truncated {
        /// JPEG or PNG.
        format: &'static str,
    },
    /// A file whose contents contradict its format.
    #[error("damaged {format}: {reason}")]
    Damaged {
        /// JPEG or PNG.
        format: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// The decoder failed in a way it should not.
    #[error("the decoder broke down on this file")]
    DecoderPanicked,
    /// A side that is no size of a crop.
    #[error("expected a crop size of 1 to {max} pixels, got {size}")]
    CropSize {
        /// What was asked for.
        size: u32,
        /// [`MAX_CROP_SIZE`](crate::MAX_CROP_SIZE).
        max: u32,
    },
    /// A list of bytes that is no image of the given size.
    #[error("expected {width} x {height} x 3 bytes and no empty side, got {bytes} bytes")]
    Shape {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// Length of the list.
        bytes: usize,
    },
}

/// Why a folder of images cannot be listed or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is no image this crate decodes.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; part of the message.
        source: ImageError,
    },
    /// A root without class folders.
    #[error(
        "expected a folder of class folders (root/<class>/<image>), {} has none ({images} images lie in it \
         directly); list a folder of images without classes as a flat one",
        path.display()
    )]
    NoClasses {
        /// The root.
        path: PathBuf,
        /// Images that lie in the root itself.
        images: usize,
    },
    /// A class folder without a JPEG or PNG.
    #[error("class folder {} holds no .jpg, .jpeg or .png; fill it or remove it", path.display())]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
    },
    /// A flat folder without a JPEG or PNG.
    #[error("{} holds no .jpg, .jpeg or .png", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// A link to a folder that the link lies in.
    #[error("{} links to a folder that holds it, listing it would never end", path.display())]
    LinkLoop {
        /// The link.
        path: PathBuf,
    },
    /// Something with an image's name that is neither file nor folder.
    #[error("expected a regular file, {} is none", path.display())]
    NotAFile {
        /// Pipe, socket or device.
        path: PathBuf,
    },
    /// A class folder whose name is not UTF-8.
    #[error("class folder {} has a name that is not UTF-8", path.display())]
    ClassName {
        /// The class folder.
        path: PathBuf,
    },
    /// Class folders that the class list does not know.
    #[error(
        "{unknown} of the class folders in {} are not in the list of {classes} classes: {}",
        path.display(),
        folders.join(", ")
    )]
    UnknownClasses {
        /// The root.
        path: PathBuf,
        /// How many.
        unknown: usize,
        /// The first of them.
        folders: Vec<String>,
        /// Length of the list.
        classes: usize,
    },
    /// A line of a class list that says something else than expected.
    #[error("{} line {line}: {reason}; expected index<TAB>folder<TAB>name, indices from 0", path.display())]
    ClassList {
        /// The class list.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An index that the folder does not have.
    #[error("image {index} was asked for, the folder has {len}")]
    NoSuchImage {
        /// What was asked for.
        index: usize,
        /// Number of images.
        len: usize,
    },
    /// Loader options that make no loader.
    #[error("expected {expected}, got {got}")]
    Options {
        /// Option and range.
        expected: &'static str,
        /// What was given.
        got: usize,
    },
    /// The system gives no further thread.
    #[error("cannot start a loader thread")]
    Thread {
        /// What the system says.
        source: io::Error,
    },
    /// A loader thread failed in a way it should not.
    #[error("loading {} broke down", path.display())]
    LoaderPanicked {
        /// The file at hand.
        path: PathBuf,
    },
}
