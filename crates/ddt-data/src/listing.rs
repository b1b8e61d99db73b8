//! Listing folders: which files are images, and in which order names come.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs::{self, DirEntry, FileType},
    iter::Peekable,
    path::{Path, PathBuf},
    slice::Iter,
};

use crate::{
    decode::{cannot_read, not_a_file},
    error::DataError,
};

/// File endings of images, in any case, and their formats.
const FORMATS: [(&str, &str); 5] =
    [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WebP"), ("bmp", "BMP")];

/// The endings, for messages.
pub(crate) const ENDINGS: &str = ".jpg, .jpeg, .png, .webp or .bmp";

/// Entries of a folder, links followed, each list in no order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) images: Vec<PathBuf>,
    /// Files that are not images by name, counted by ending.
    pub(crate) others: BTreeMap<String, usize>,
}

/// Lists a folder. Names that begin with a dot are ignored.
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
        } else if format(&path).is_none() {
            *listing.others.entry(ending(&path)).or_default() += 1;
        } else if kind.is_file() {
            listing.images.push(path);
        } else {
            return Err(not_a_file(&path));
        }
    }
    Ok(listing)
}

/// All images and other files at any depth below `folder`, in no order.
pub(crate) fn list_below(folder: &Path) -> Result<Listing, DataError> {
    let mut all = Listing::default();
    descend(folder, &mut Vec::new(), &mut all)?;
    Ok(all)
}

/// The format that a file's ending promises.
pub(crate) fn format(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?;
    FORMATS.iter().find(|it| ending.eq_ignore_ascii_case(it.0)).map(|it| it.1)
}

/// Adds counts to counts.
pub(crate) fn add(sums: &mut BTreeMap<String, usize>, more: BTreeMap<String, usize>) {
    more.into_iter().for_each(|(key, count)| *sums.entry(key).or_default() += count);
}

/// `above` are the canonical paths of the folders that led here; returning to one of them is a loop.
fn descend(folder: &Path, above: &mut Vec<PathBuf>, all: &mut Listing) -> Result<(), DataError> {
    let real = folder.canonicalize().map_err(cannot_read(folder))?;
    if above.contains(&real) {
        let problem = "links to a folder that holds it, so listing it would never end".to_owned();
        return Err(DataError::Layout { path: folder.to_owned(), problem });
    }
    above.push(real);
    let listing = list(folder)?;
    all.images.extend(listing.images);
    add(&mut all.others, listing.others);
    listing.folders.iter().try_for_each(|it| descend(it, above, all))?;
    above.pop();
    Ok(())
}

/// The target's type for a link; a dangling link is an error.
fn kind(entry: &DirEntry, path: &Path) -> Result<FileType, DataError> {
    let own = entry.file_type().map_err(cannot_read(path))?;
    if own.is_symlink() {
        path.metadata().map(|it| it.file_type()).map_err(cannot_read(path))
    } else {
        Ok(own)
    }
}

fn ending(path: &Path) -> String {
    let ending = path.extension().map(|it| format!(".{}", it.to_string_lossy().to_lowercase()));
    ending.unwrap_or_else(|| "without an ending".to_owned())
}

/// Order of names in which runs of digits compare as numbers, everything else byte by byte: `img2` before
/// `img10`.
///
/// A total order: names that differ only in leading zeros fall back to their bytes.
pub(crate) fn natural_order(a: &[u8], b: &[u8]) -> Ordering {
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return a.cmp(b),
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (number(&mut left), number(&mut right));
                x.len().cmp(&y.len()).then_with(|| x.cmp(&y))
            }
            _ => left.next().cmp(&right.next()),
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Takes a run of digits, without leading zeros.
fn number(bytes: &mut Peekable<Iter<'_, u8>>) -> Vec<u8> {
    let mut digits = Vec::new();
    while let Some(digit) = bytes.next_if(|it| it.is_ascii_digit()) {
        if *digit != b'0' || !digits.is_empty() {
            digits.push(*digit);
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names =
            ["b", "a10", "a2", "a02", "a", "a2b10", "a2b9", "10", "9", "a99999999999999999999999"];
        names.sort_by(|a, b| natural_order(a.as_bytes(), b.as_bytes()));
        let sorted = ["9", "10", "a", "a02", "a2", "a2b9", "a2b10", "a10", "a99999999999999999999999", "b"];
        assert_eq!(names, sorted);
    }

    proptest! {
        #[test]
        fn it_is_a_total_order(a in "[a01 9]{0,6}", b in "[a01 9]{0,6}", c in "[a01 9]{0,6}") {
            let order = |a: &String, b: &String| natural_order(a.as_bytes(), b.as_bytes());
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert_eq!(order(&a, &b).is_eq(), a == b);
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }
}
