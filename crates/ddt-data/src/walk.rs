//! What lies in a folder.

use std::{
    fs::{self, DirEntry, FileType},
    path::{Path, PathBuf},
};

use crate::{error::DataError, read::cannot_read};

/// Endings of image files, in any case.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// One folder's entries, links followed, each list in no order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) images: Vec<PathBuf>,
    /// Files that have no image's ending.
    pub(crate) others: usize,
}

/// Lists a folder. Names that begin with a dot are passed over.
pub(crate) fn list(folder: &Path) -> Result<Listing, DataError> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder).map_err(cannot_read(folder))? {
        let entry = entry.map_err(cannot_read(folder))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let kind = kind(&entry, &path)?;
        if kind.is_dir() {
            listing.folders.push(path);
        } else if !is_image(&path) {
            listing.others += 1;
        } else if kind.is_file() {
            listing.images.push(path);
        } else {
            return Err(DataError::NotAFile { path });
        }
    }
    Ok(listing)
}

/// All images at any depth below `folder`, in no order, and the number of other files.
pub(crate) fn images_below(folder: &Path) -> Result<(Vec<PathBuf>, usize), DataError> {
    let (mut images, mut others) = (Vec::new(), 0);
    descend(folder, &mut Vec::new(), &mut |listing: Listing| {
        images.extend(listing.images);
        others += listing.others;
    })?;
    Ok((images, others))
}

/// `above` are the true paths of the folders that led here; coming back to one of them is a loop.
fn descend(
    folder: &Path,
    above: &mut Vec<PathBuf>,
    found: &mut impl FnMut(Listing),
) -> Result<(), DataError> {
    let real = folder.canonicalize().map_err(cannot_read(folder))?;
    if above.contains(&real) {
        return Err(DataError::LinkLoop { path: folder.to_owned() });
    }
    above.push(real);
    let mut listing = list(folder)?;
    let folders = std::mem::take(&mut listing.folders);
    found(listing);
    folders.iter().try_for_each(|it| descend(it, above, found))?;
    above.pop();
    Ok(())
}

/// Of a link, what it leads to; one that leads nowhere is an error.
fn kind(entry: &DirEntry, path: &Path) -> Result<FileType, DataError> {
    let own = entry.file_type().map_err(cannot_read(path))?;
    if own.is_symlink() {
        path.metadata().map(|it| it.file_type()).map_err(cannot_read(path))
    } else {
        Ok(own)
    }
}

fn is_image(path: &Path) -> bool {
    path.extension()
        .and_then(|it| it.to_str())
        .is_some_and(|it| EXTENSIONS.iter().any(|known| it.eq_ignore_ascii_case(known)))
}
