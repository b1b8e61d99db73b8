//! How (B, L, D) tensors are cut into tasks.

use std::ops::Range;

use super::element::Element;

/// Rows of one task, at most; fixed, so that partial sums do not depend on the machine.
const TASK_ROWS: usize = 64;

/// The rows of a (B, L, D) tensor, cut into tasks of at most [`TASK_ROWS`] rows.
///
/// A task holds whole images or a part of one image. The part of a task inside one image is a *piece*:
/// sums over the rows of an image are kept per piece and added in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    batch: usize,
    len: usize,
}

/// Rows and pieces of one task, as ranges over those of the whole tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Task {
    pub(crate) rows: Range<usize>,
    pub(crate) pieces: Range<usize>,
}

impl Rows {
    pub(crate) fn new(batch: usize, len: usize) -> Self {
        Self { batch, len }
    }

    /// L.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn count(&self) -> usize {
        self.batch * self.len
    }

    /// The image that `row` belongs to.
    pub(crate) fn image(&self, row: usize) -> usize {
        row / self.len
    }

    fn pieces_per_image(&self) -> usize {
        self.len.div_ceil(TASK_ROWS)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.batch * self.pieces_per_image()
    }

    pub(crate) fn tasks(&self) -> Vec<Task> {
        let Self { batch, len } = *self;
        if len == 0 {
            return Vec::new();
        }
        if len <= TASK_ROWS {
            let images = TASK_ROWS / len;
            let task = |first: usize| {
                let last = (first + images).min(batch);
                Task { rows: first * len..last * len, pieces: first..last }
            };
            return (0..batch).step_by(images).map(task).collect();
        }
        let per_image = self.pieces_per_image();
        let task = |piece: usize| {
            let (image, part) = (piece / per_image, piece % per_image);
            let first = image * len;
            let rows = first + part * TASK_ROWS..first + ((part + 1) * TASK_ROWS).min(len);
            Task { rows, pieces: piece..piece + 1 }
        };
        (0..batch * per_image).map(task).collect()
    }

    /// Adds the pieces of each image, (pieces, width), to (B, width).
    pub(crate) fn sum_pieces<T: Element>(&self, partial: Vec<f32>, width: usize) -> Vec<T> {
        let per_image = self.pieces_per_image();
        if per_image == 1 || width == 0 {
            return T::collect(partial);
        }
        let mut total = vec![0.0; self.batch * width];
        for image in 0..self.batch {
            let total = &mut total[image * width..][..width];
            for piece in 0..per_image {
                add(total, &partial[(image * per_image + piece) * width..][..width]);
            }
        }
        T::collect(total)
    }
}

/// Adds rows of `width`, in order, to one.
pub(crate) fn sum_rows<T: Element>(rows: &[T], width: usize) -> Vec<f32> {
    let (mut total, mut scratch) = (vec![0.0; width], T::scratch(width));
    if width > 0 {
        rows.chunks_exact(width).for_each(|row| add(&mut total, T::view(row, &mut scratch)));
    }
    total
}

fn add(total: &mut [f32], row: &[f32]) {
    total.iter_mut().zip(row).for_each(|(total, x)| *total += x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_row_and_piece_in_order_and_never_straddle_images() {
        for (batch, len) in [(3, 1), (256, 16), (2, 64), (2, 65), (1, 200), (5, 63), (0, 4), (4, 0)] {
            let rows = Rows::new(batch, len);
            let (mut row, mut piece) = (0, 0);
            for task in rows.tasks() {
                assert_eq!((task.rows.start, task.pieces.start), (row, piece));
                assert!(task.rows.len() <= TASK_ROWS);
                if task.pieces.len() > 1 {
                    assert_eq!(task.rows.len(), task.pieces.len() * len);
                } else {
                    assert_eq!(rows.image(task.rows.start), rows.image(task.rows.end - 1));
                }
                (row, piece) = (task.rows.end, task.pieces.end);
            }
            assert_eq!((row, piece), (rows.count(), rows.pieces()), "({batch}, {len})");
        }
    }

    #[test]
    fn pieces_are_added_per_image() {
        let rows = Rows::new(2, 100);
        let partial = vec![1.0, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0];
        assert_eq!(rows.sum_pieces::<f32>(partial, 2), [11.0, 22.0, 33.0, 44.0]);
    }
}
