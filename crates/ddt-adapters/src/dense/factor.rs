//! A layer's weight and bias, ready for products.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::conv::Window;
use super::epilogue::Epilogue;
use super::panels::{PANEL, Panels};
use super::product::Product;
use super::slice;
use super::tile::Runs;

/// Weight and bias on the CPU; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Factor(Arc<(Panels, Vec<f32>)>);

impl Factor {
    /// From `weight: (out, depth)` and `bias: (out)`, both f32.
    pub(super) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (width, depth) = weight.dims2()?;
        if width * depth == 0 {
            bail!("expected a weight (out, in) that is not empty, got {:?}", weight.shape());
        }
        let columns = weight.flatten_all()?.to_vec1::<f32>()?;
        let mut padded = match bias {
            Some(bias) => bias.to_vec1::<f32>()?,
            None => vec![],
        };
        padded.resize(width.next_multiple_of(PANEL), 0.0);
        Ok(Self(Arc::new((Panels::from_columns(&columns, depth, width), padded))))
    }

    /// Multiplies the rows of `xs`, or what `window` sees in the images `xs: (B, H, W, C)`.
    pub(super) fn multiply(
        &self,
        xs: &Tensor,
        window: Option<Window>,
        (residual, epilogue): (Option<&Tensor>, Epilogue),
    ) -> Result<Tensor> {
        let op = Multiply { factor: self.clone(), window, epilogue };
        match residual {
            Some(residual) => xs.contiguous()?.apply_op2(&residual.contiguous()?, op),
            None => xs.contiguous()?.apply_op1(op),
        }
    }
}

const NAME: &str = "frozen layer";

struct Multiply {
    factor: Factor,
    window: Option<Window>,
    epilogue: Epilogue,
}

impl Multiply {
    fn run(
        &self,
        xs: &[f32],
        shape: &Shape,
        residual: Option<(&[f32], &Shape)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (panels, bias) = &*self.factor.0;
        let (depth, width) = (panels.depth(), panels.width());
        let mut dims = shape.dims().to_vec();
        let lowered = match self.window {
            Some(window) => Some(window.lower(xs, shape.dims4()?)?),
            None => None,
        };
        let runs = lowered.as_ref().map_or(Runs::row(depth), |it| it.runs);
        if runs.count * runs.len != depth || dims.last() == Some(&0) {
            bail!("{NAME}: expected {depth} numbers to multiply, got {} x {}", runs.count, runs.len);
        }
        if let Some(lowered) = &lowered {
            (dims[1], dims[2]) = lowered.size;
        } else if dims.last() != Some(&depth) {
            bail!("{NAME}: expected (.., {depth}), got {shape:?}");
        }
        if let Some(last) = dims.last_mut() {
            *last = width;
        }
        let out_shape = Shape::from(dims);
        let rows = out_shape.elem_count() / width;
        let residual = match residual {
            Some((residual, shape)) if *shape == out_shape => Some(residual),
            Some((_, shape)) => bail!("{NAME}: expected a residual {out_shape:?}, got {shape:?}"),
            None => None,
        };
        let epilogue = self.epilogue;
        let out = match &lowered {
            Some(it) => {
                let starts = |row| it.start(row);
                Product { xs: &it.xs, starts, runs, panels, bias, residual, epilogue }.run(rows)
            }
            None => {
                let starts = |row| row * depth;
                Product { xs, starts, runs, panels, bias, residual, epilogue }.run(rows)
            }
        };
        Ok((CpuStorage::F32(out), out_shape))
    }
}

impl CustomOp1 for Multiply {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(slice(NAME, xs, layout)?, layout.shape(), None)
    }
}

impl CustomOp2 for Multiply {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = (slice(NAME, residual, residual_layout)?, residual_layout.shape());
        self.run(slice(NAME, xs, layout)?, layout.shape(), Some(residual))
    }
}
