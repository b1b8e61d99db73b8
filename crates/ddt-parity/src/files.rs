//! Files that PyTorch wrote.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use ddt_files::Checkpoint;

use crate::{Comparison, Fixture, Tolerance};

/// Every tensor of the file named by `checkpoint`: its name, dtype, shape and bits.
pub(crate) fn checkpoint_tensors(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let checkpoint = Checkpoint::open(fixture.beside("checkpoint")?)?;
    let expected = fixture.checkpoint().names();
    let expected: Vec<&str> = expected.into_iter().filter_map(|it| it.strip_prefix("out.")).collect();
    let mut names = checkpoint.names();
    names.sort_unstable();
    ensure!(names == expected, "expected the tensors {expected:?}, got {names:?}");
    let compare = |name: &str| {
        let (got, want) = (checkpoint.tensor(name, &Device::Cpu)?, fixture.tensor(&format!("out.{name}"))?);
        ensure!(got.dtype() == want.dtype(), "{name}: expected {:?}, got {:?}", want.dtype(), got.dtype());
        // Bits, not numbers: zeros have signs, and NaN is not equal to itself.
        ensure!(bytes(&got)? == bytes(&want)?, "{name}: expected the fixture's bytes, got others");
        Comparison::tensors(&format!("out.{name}"), &got, &want, Tolerance::Exact)
    };
    expected.into_iter().map(compare).collect()
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}
