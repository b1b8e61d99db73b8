//! PyTorch's noise.

use anyhow::Result;
use candle_core::Device;
use serde::Deserialize;

use crate::{Comparison, Fixture, Tolerance};

#[derive(Debug, Deserialize)]
struct Case {
    seed: u64,
    shape: Vec<usize>,
}

/// One tensor of noise for each entry of `cases`.
pub(crate) fn torch_randn(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let cases: Vec<Case> = fixture.json("cases")?;
    let compare = |(i, case): (usize, &Case)| {
        let got = ddt_flow::torch_randn(case.seed, case.shape.as_slice(), &Device::Cpu)?;
        fixture.compare(&format!("out.{i}"), &got, Tolerance::NOISE)
    };
    cases.iter().enumerate().map(compare).collect()
}
