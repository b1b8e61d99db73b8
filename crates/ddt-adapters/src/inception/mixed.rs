//! The blocks of parallel branches that most of the network is made of.

use candle_core::Result;
use candle_nn::VarBuilder;

use super::layers::{Branch, FoldedConv, Mixed};
use crate::dense::{Pool, Window};

pub(super) const POINT: Window = Window::POINT;
pub(super) const SAME_3: Window = Window::SAME;
const SAME_5: Window = Window { kernel: (5, 5), stride: 1, pad: (2, 2) };
const ROW_3: Window = Window { kernel: (1, 3), stride: 1, pad: (0, 1) };
const COLUMN_3: Window = Window { kernel: (3, 1), stride: 1, pad: (1, 0) };
const ROW_7: Window = Window { kernel: (1, 7), stride: 1, pad: (0, 3) };
const COLUMN_7: Window = Window { kernel: (7, 1), stride: 1, pad: (3, 0) };
/// Unpadded.
pub(super) const VALID_3: Window = Window { kernel: (3, 3), stride: 1, pad: (0, 0) };
pub(super) const HALVE_3: Window = Window { kernel: (3, 3), stride: 2, pad: (0, 0) };

/// Name, outputs and window of a convolution.
type Layer = (&'static str, usize, Window);

impl Branch<FoldedConv> {
    fn new(inp: usize, layers: &[Layer], vb: &VarBuilder) -> Result<Self> {
        Self::split(inp, layers, &[], vb)
    }

    fn split(inp: usize, layers: &[Layer], last: &[Layer], vb: &VarBuilder) -> Result<Self> {
        let mut width = inp;
        let mut convs = Vec::new();
        for &(name, out, window) in layers {
            convs.push(FoldedConv::read((width, out), window, vb.pp(name))?);
            width = out;
        }
        let last =
            last.iter().map(|&(name, out, window)| FoldedConv::read((width, out), window, vb.pp(name)));
        Ok(Self { pool: None, convs, last: last.collect::<Result<_>>()? })
    }

    fn pooled(self, pool: Pool) -> Self {
        Self { pool: Some(pool), ..self }
    }

    fn only(pool: Pool) -> Self {
        Self { pool: Some(pool), convs: vec![], last: vec![] }
    }
}

impl Mixed<FoldedConv> {
    /// At 35 x 35: 5x5 and twice 3x3.
    pub(super) fn a(inp: usize, pooled: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch1x1", 64, POINT)])?,
            branch(&[("branch5x5_1", 48, POINT), ("branch5x5_2", 64, SAME_5)])?,
            branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, SAME_3),
                ("branch3x3dbl_3", 96, SAME_3),
            ])?,
            branch(&[("branch_pool", pooled, POINT)])?.pooled(Pool::MeanSame),
        ]))
    }

    /// From 35 x 35 to 17 x 17.
    pub(super) fn b(inp: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch3x3", 384, HALVE_3)])?,
            branch(&[
                ("branch3x3dbl_1", 64, POINT),
                ("branch3x3dbl_2", 96, SAME_3),
                ("branch3x3dbl_3", 96, HALVE_3),
            ])?,
            Branch::only(Pool::MaxHalve),
        ]))
    }

    /// At 17 x 17: rows and columns of 7.
    pub(super) fn c(inp: usize, inner: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch1x1", 192, POINT)])?,
            branch(&[
                ("branch7x7_1", inner, POINT),
                ("branch7x7_2", inner, ROW_7),
                ("branch7x7_3", 192, COLUMN_7),
            ])?,
            branch(&[
                ("branch7x7dbl_1", inner, POINT),
                ("branch7x7dbl_2", inner, COLUMN_7),
                ("branch7x7dbl_3", inner, ROW_7),
                ("branch7x7dbl_4", inner, COLUMN_7),
                ("branch7x7dbl_5", 192, ROW_7),
            ])?,
            branch(&[("branch_pool", 192, POINT)])?.pooled(Pool::MeanSame),
        ]))
    }

    /// From 17 x 17 to 8 x 8.
    pub(super) fn d(inp: usize, vb: &VarBuilder) -> Result<Self> {
        let branch = |layers: &[Layer]| Branch::new(inp, layers, vb);
        Ok(Self(vec![
            branch(&[("branch3x3_1", 192, POINT), ("branch3x3_2", 320, HALVE_3)])?,
            branch(&[
                ("branch7x7x3_1", 192, POINT),
                ("branch7x7x3_2", 192, ROW_7),
                ("branch7x7x3_3", 192, COLUMN_7),
                ("branch7x7x3_4", 192, HALVE_3),
            ])?,
            Branch::only(Pool::MaxHalve),
        ]))
    }

    /// At 8 x 8: 3x3 split into a row and a column; the pool differs between the two blocks.
    pub(super) fn e(inp: usize, pool: Pool, vb: &VarBuilder) -> Result<Self> {
        Ok(Self(vec![
            Branch::new(inp, &[("branch1x1", 320, POINT)], vb)?,
            Branch::split(
                inp,
                &[("branch3x3_1", 384, POINT)],
                &[("branch3x3_2a", 384, ROW_3), ("branch3x3_2b", 384, COLUMN_3)],
                vb,
            )?,
            Branch::split(
                inp,
                &[("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, SAME_3)],
                &[("branch3x3dbl_3a", 384, ROW_3), ("branch3x3dbl_3b", 384, COLUMN_3)],
                vb,
            )?,
            Branch::new(inp, &[("branch_pool", 192, POINT)], vb)?.pooled(pool),
        ]))
    }
}
