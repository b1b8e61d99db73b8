//! Rows of an array that need not fit in memory.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::npz::array::NpyArray;
use crate::npz::content::Content;
use crate::npz::directory::clip;
use crate::npz::error::NpzError;

/// Reads rows of an array in turn, as the bytes of its numbers (little-endian).
///
/// ```
/// # use ddt_files::npz::{ArrayData, NpzFile, write_npz};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("images.npz");
/// # write_npz(&path, &[("arr_0", &[3, 2], ArrayData::U8(&[1, 2, 3, 4, 5, 6]))])?;
/// let file = NpzFile::open(&path)?;
/// let mut rows = file.array("arr_0")?.rows(1..3)?;
/// let mut buffer = vec![0; 10 * rows.row_bytes()];
/// assert_eq!(rows.read(&mut buffer)?, 2);
/// assert_eq!(buffer[..4], [3, 4, 5, 6]);
/// assert_eq!(rows.read(&mut buffer)?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Rows<'a> {
    content: Content<'a>,
    row_bytes: usize,
    left: usize,
    path: PathBuf,
    array: String,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(array: &NpyArray<'a>, range: Range<usize>) -> Result<Self, NpzError> {
        let header = array.header();
        let row_bytes =
            header.row_bytes().ok_or_else(|| array.broken("its rows do not fit in memory".to_owned()))?;
        let mut content = Content::new(array.source, array.entry);
        let mut start = vec![0; array.header_bytes as usize];
        content.fill(&mut start).map_err(|problem| array.broken(problem))?;
        // Inside the array, whose size is known to fit.
        content.skip(range.start as u64 * row_bytes as u64).map_err(|problem| array.broken(problem))?;
        let (path, name) = (array.source.path().to_owned(), clip(array.name));
        Ok(Self { content, row_bytes, left: range.len(), path, array: name })
    }

    /// Size of one row in bytes.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Rows that are still to be read.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Reads as many rows as `buffer` takes and says how many; 0 when all were read.
    ///
    /// The checksum is compared where all rows were asked for, and at the end of a deflated array.
    ///
    /// # Errors
    ///
    /// [`NpzError::Invalid`] for a buffer too small for one row; [`NpzError::Npy`] for an array that is cut
    /// short, goes on beyond its size or does not match its checksum.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, NpzError> {
        let fits = buffer.len().checked_div(self.row_bytes).unwrap_or(usize::MAX);
        if fits == 0 && self.left > 0 {
            return Err(NpzError::Invalid {
                what: "memory for rows",
                expected: format!("at least {} bytes", self.row_bytes),
                got: buffer.len().to_string(),
            });
        }
        let now = fits.min(self.left);
        let filled = self.content.fill(&mut buffer[..now * self.row_bytes]);
        filled.and_then(|()| self.content.finish()).map_err(|problem| NpzError::Npy {
            path: self.path.clone(),
            array: self.array.clone(),
            problem,
        })?;
        self.left -= now;
        Ok(now)
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("path", &self.path)
            .field("array", &self.array)
            .field("left", &self.left)
            .finish()
    }
}
