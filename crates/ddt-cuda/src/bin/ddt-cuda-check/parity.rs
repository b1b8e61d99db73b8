//! Golden outputs on the GPU.

use std::path::{Path, PathBuf};

use ddt_cuda::parity::{self, Compared};
use ddt_cuda::{
    CudaExecutor, CudaInception, CudaKlDecoder, DECODER_BYTES, DeviceWeights, GpuError, Precision,
};
use ddt_kernels::cuda::Cuda;

/// One output of one fixture.
pub(crate) struct Row {
    pub(crate) fixture: String,
    pub(crate) precision: &'static str,
    pub(crate) output: String,
    pub(crate) relative_rms: f64,
    pub(crate) tolerance: f64,
}

impl Row {
    pub(crate) fn passed(&self) -> bool {
        self.relative_rms <= self.tolerance
    }
}

/// Runs every fixture of a network that has programs for a GPU.
pub(crate) fn run(folder: &Path, cuda: &Cuda) -> Result<Vec<Row>, GpuError> {
    let mut rows = Vec::new();
    for path in files(folder) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match parity::kind(&path).as_deref() {
            // Promised by the fixtures in f32; bf16 keeps 8 bits, and a dozen layers and steps add up.
            Some("ddt_forward") => rows.extend(sampler(&path, &name, cuda, 1e-5)?),
            Some("ddt_sample") => rows.extend(sampler(&path, &name, cuda, 1e-4)?),
            Some("vae_kl") => rows.extend(decoder(&path, &name, cuda)?),
            Some("inception") => rows.extend(inception(&path, &name, cuda)?),
            _ => {}
        }
    }
    Ok(rows)
}

fn sampler(path: &Path, name: &str, cuda: &Cuda, exact: f64) -> Result<Vec<Row>, GpuError> {
    let mut rows = Vec::new();
    for (precision, shown, tolerance) in [(Precision::F32, "f32", exact), (Precision::Bf16, "bf16", 8e-2)] {
        let outputs = parity::fixture(path, precision, &mut |programs, source| {
            let weights = DeviceWeights::upload(cuda, programs.weights(), precision, source)?;
            Ok(Box::new(CudaExecutor::new(cuda, programs, &weights)?))
        })?;
        rows.extend(outputs.into_iter().map(|it| row(name, shown, it, tolerance)));
    }
    Ok(rows)
}

fn inception(path: &Path, name: &str, cuda: &Cuda) -> Result<Vec<Row>, GpuError> {
    let outputs = parity::inception_fixture(path, &mut |weights, pixels| {
        CudaInception::on(cuda, weights)?.forward(pixels)
    })?;
    Ok(outputs.into_iter().map(|it| row(name, "f32", it, 1e-4)).collect())
}

fn row(fixture: &str, precision: &'static str, compared: Compared, tolerance: f64) -> Row {
    let Compared { name, relative_rms } = compared;
    Row { fixture: fixture.to_owned(), precision, output: name, relative_rms, tolerance }
}

fn decoder(path: &Path, name: &str, cuda: &Cuda) -> Result<Vec<Row>, GpuError> {
    let run = |(precision, shown, tolerance)| {
        let output = parity::kl_fixture(path, &mut |cfg, vb| {
            Ok(Box::new(CudaKlDecoder::on(cuda, cfg, precision, DECODER_BYTES, vb)?))
        })?;
        Ok(row(name, shown, output, tolerance))
    };
    [(Precision::F32, "f32", 1e-4), (Precision::Bf16, "bf16", 3e-2)].into_iter().map(run).collect()
}

/// All files, sorted; none where there is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|it| it.extension().is_some_and(|it| it == "safetensors")).collect();
    found.sort();
    found
}
