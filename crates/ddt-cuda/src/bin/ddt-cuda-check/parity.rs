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
    for path in fixtures(folder) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("vae_kl") {
            rows.extend(decoder(&path, &name, cuda)?);
            continue;
        }
        if name == "inception" {
            let outputs = parity::inception_fixture(&path, &mut |weights, pixels| {
                CudaInception::on(cuda, weights)?.forward(pixels)
            })?;
            rows.extend(outputs.into_iter().map(|it| row(&name, "f32", it, 1e-4)));
            continue;
        }
        // Promised by the fixtures in f32; bf16 keeps 8 bits, and a dozen layers and steps add up.
        let exact = if name.starts_with("ddt_sample") { 1e-4 } else { 1e-5 };
        for (precision, shown, tolerance) in [(Precision::F32, "f32", exact), (Precision::Bf16, "bf16", 8e-2)]
        {
            let outputs = parity::fixture(&path, precision, &mut |programs, source| {
                let weights = DeviceWeights::upload(cuda, programs.weights(), precision, source)?;
                Ok(Box::new(CudaExecutor::new(cuda, programs, &weights)?))
            })?;
            rows.extend(outputs.into_iter().map(|it| row(&name, shown, it, tolerance)));
        }
    }
    Ok(rows)
}

fn row(fixture: &str, precision: &'static str, compared: Compared, tolerance: f64) -> Row {
    let Compared { name, relative_rms } = compared;
    Row { fixture: fixture.to_owned(), precision, output: name, relative_rms, tolerance }
}

fn decoder(path: &Path, name: &str, cuda: &Cuda) -> Result<Vec<Row>, GpuError> {
    let run = |(precision, shown, tolerance)| {
        let output = parity::kl_fixture(path, &mut |cpu| {
            Ok(Box::new(CudaKlDecoder::on(cuda, cpu, precision, DECODER_BYTES)?))
        })?;
        Ok(row(name, shown, output, tolerance))
    };
    [(Precision::F32, "f32", 1e-4), (Precision::Bf16, "bf16", 3e-2)].into_iter().map(run).collect()
}

/// Files of the kinds there are programs for, sorted; none where there is no folder.
fn fixtures(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path());
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kinds = ["ddt_forward", "ddt_sample", "vae_kl", "inception"];
        name.ends_with(".safetensors") && kinds.iter().any(|kind| name.starts_with(kind))
    };
    let mut found: Vec<PathBuf> = entries.filter(wanted).collect();
    found.sort();
    found
}
