//! PyTorch's noise.

use anyhow::Result;
use candle_core::Device;
use serde::Deserialize;

use super::{
    compare::{Comparison, Tolerance},
    fixture::Fixture,
};

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
        let name = format!("out.{i}");
        Comparison::tensors(&name, &got, &fixture.tensor(&name)?, Tolerance::Absolute(3e-6))
    };
    cases.iter().enumerate().map(compare).collect()
}
