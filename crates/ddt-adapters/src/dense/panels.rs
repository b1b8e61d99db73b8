//! A matrix, reordered for the tile that multiplies by it.

/// Columns of one panel: two registers of the widest instruction set.
pub(crate) const PANEL: usize = 32;

/// A `(depth, width)` matrix in panels of [`PANEL`] columns, each row by row; the last is filled up with
/// zeros.
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    data: Vec<f32>,
    depth: usize,
    width: usize,
}

impl Panels {
    /// No panel yet; see [`fill_columns`](Self::fill_columns) and [`fill_rows`](Self::fill_rows).
    pub(crate) fn zeros(depth: usize, width: usize) -> Self {
        Self { data: vec![0.0; width.next_multiple_of(PANEL) * depth], depth, width }
    }

    /// From the columns of the matrix, one after the other: a linear layer's `(out, in)` weight.
    pub(crate) fn from_columns(columns: &[f32], depth: usize, width: usize) -> Self {
        let mut panels = Self::zeros(depth, width);
        panels.fill_columns(columns.chunks_exact(depth.max(1)));
        panels
    }

    /// Replaces the matrix by `columns`.
    pub(crate) fn fill_columns<'a>(&mut self, columns: impl Iterator<Item = &'a [f32]>) {
        for (column, values) in columns.take(self.width).enumerate() {
            let first = column / PANEL * PANEL * self.depth + column % PANEL;
            for (out, &x) in self.data[first..].iter_mut().step_by(PANEL).zip(values.iter().take(self.depth))
            {
                *out = x;
            }
        }
    }

    /// Replaces the matrix by `rows`.
    pub(crate) fn fill_rows<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        for (k, values) in rows.take(self.depth).enumerate() {
            for (panel, values) in values[..self.width].chunks(PANEL).enumerate() {
                self.data[(panel * self.depth + k) * PANEL..][..values.len()].copy_from_slice(values);
            }
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The panels, left to right.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact((self.depth * PANEL).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_give_the_same_panels() {
        let (depth, width) = (3, 37);
        let at = |k: usize, column: usize| (k * 100 + column) as f32;
        let columns: Vec<f32> = (0..width).flat_map(|c| (0..depth).map(move |k| at(k, c))).collect();
        let rows: Vec<Vec<f32>> = (0..depth).map(|k| (0..width).map(|c| at(k, c)).collect()).collect();
        let panels = Panels::from_columns(&columns, depth, width);
        let mut same = Panels::zeros(depth, width);
        same.fill_rows(rows.iter().map(Vec::as_slice));
        assert_eq!(panels.data, same.data);
        let parts: Vec<&[f32]> = panels.iter().collect();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0][PANEL + 5], parts[1][2 * PANEL + 4]), (at(1, 5), at(2, 36)));
        assert_eq!(parts[1][5..PANEL], [0.0; 27]);
    }
}
