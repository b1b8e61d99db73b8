//! Comparison of this workspace with results of independent implementations.
//!
//! A fixture is a safetensors file whose metadata names its `kind`. A kind is one function that computes
//! the fixture's outputs from its inputs; it is in the module named after the crate that it proves.
//! The goldens are the small fixtures in `fixtures/` at the root of the repository, made by
//! `fixtures/generate`. Each crate's tests run the goldens of its kinds:
//!
//! ```
//! # #[cfg(feature = "flow")]
//! ddt_parity::check("torch_randn")?;
//! # Ok::<(), anyhow::Error>(())
//! ```

#![forbid(unsafe_code)]

mod compare;
mod fixture;

#[cfg(feature = "adapters")]
mod adapters;
#[cfg(feature = "data")]
mod data;
#[cfg(feature = "model")]
mod dit_dh;
mod files;
#[cfg(feature = "flow")]
mod flow;
#[cfg(any(feature = "cuda-emulation", feature = "gpu-check"))]
mod gpu;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "model")]
mod model;
#[cfg(feature = "adapters")]
mod rae;
#[cfg(feature = "sharing")]
mod sharing;
#[cfg(feature = "train")]
mod train;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};

pub use compare::{Comparison, Tolerance, relative_rms};
pub use fixture::Fixture;
#[cfg(any(feature = "cuda-emulation", feature = "gpu-check"))]
pub use gpu::compare_on_gpu;
#[cfg(feature = "model")]
pub use model::compare_halves;

type Kind = fn(&Fixture) -> Result<Vec<Comparison>>;

/// The kinds, each with the function that computes its outputs.
const KINDS: &[(&str, Kind)] = &[
    #[cfg(feature = "model")]
    ("ddt_forward", model::ddt_forward),
    #[cfg(feature = "model")]
    ("decoder_only_forward", model::decoder_only_forward),
    #[cfg(feature = "model")]
    ("checkpoint_forward", model::checkpoint_forward),
    #[cfg(feature = "model")]
    ("sit_forward", model::sit_forward),
    #[cfg(feature = "model")]
    ("repa_sit_forward", model::repa_sit_forward),
    #[cfg(feature = "model")]
    ("ddt_sample", model::ddt_sample),
    #[cfg(feature = "model")]
    ("ddt_forecast", model::ddt_sample),
    #[cfg(feature = "model")]
    ("ditdh_forward", dit_dh::ditdh_forward),
    #[cfg(feature = "model")]
    ("ditdh_sample", dit_dh::ditdh_sample),
    #[cfg(feature = "train")]
    ("ditdh_train", train::ditdh_train),
    #[cfg(feature = "train")]
    ("adamw_ema", train::adamw_ema),
    #[cfg(feature = "train")]
    ("repa_step", train::repa_step),
    #[cfg(feature = "flow")]
    ("torch_randn", flow::torch_randn),
    ("checkpoint_tensors", files::checkpoint_tensors),
    #[cfg(feature = "adapters")]
    ("vae_kl", adapters::vae_kl),
    #[cfg(feature = "adapters")]
    ("tae", adapters::tae),
    #[cfg(feature = "adapters")]
    ("dinov2", adapters::dinov2),
    #[cfg(feature = "adapters")]
    ("inception", adapters::inception),
    #[cfg(feature = "adapters")]
    ("rae_encode", rae::rae_encode),
    #[cfg(feature = "adapters")]
    ("rae_decode", rae::rae_decode),
    #[cfg(feature = "data")]
    ("center_crop", data::center_crop),
    #[cfg(feature = "sharing")]
    ("sharing_states", sharing::sharing_states),
    #[cfg(feature = "sharing")]
    ("sharing_plan", sharing::sharing_plan),
    #[cfg(feature = "metrics")]
    ("metrics", metrics::metrics),
];

/// Kinds that can be computed in another dtype than f32.
const NETWORKS: &[&str] = &[
    "ddt_forward",
    "decoder_only_forward",
    "checkpoint_forward",
    "ddt_sample",
    "ddt_forecast",
    "ditdh_forward",
    "ditdh_sample",
];

/// Computes a fixture's outputs with weights in `dtype` and compares them, one comparison an output.
///
/// # Errors
/// A file that is no fixture of a known kind; a kind that `dtype` is not for; whatever computing fails with.
pub fn compare(path: &Path, dtype: DType) -> Result<Vec<Comparison>> {
    compare_on(path, dtype, &Device::Cpu)
}

/// [`compare`] with the network on a device.
///
/// # Errors
/// As [`compare`].
pub fn compare_on(path: &Path, dtype: DType, device: &Device) -> Result<Vec<Comparison>> {
    let fixture = Fixture::open(path)?.in_dtype(dtype).on(device);
    let kind = fixture.text("kind")?;
    let Some((_, compute)) = KINDS.iter().find(|it| it.0 == kind) else {
        let known: Vec<&str> = KINDS.iter().map(|it| it.0).collect();
        bail!("expected one of the kinds {}, got {kind:?}", known.join(", "));
    };
    if dtype != DType::F32 && !NETWORKS.contains(&kind) {
        bail!("expected one of the kinds {} in {dtype:?}, got {kind:?}", NETWORKS.join(", "));
    }
    let comparisons = compute(&fixture).with_context(|| format!("kind {kind}"))?;
    ensure!(!comparisons.is_empty(), "expected outputs to compare, got a fixture without any");
    Ok(comparisons)
}

/// The folder of the goldens.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// Opens a golden, such as `vae_kl`.
///
/// # Errors
/// No golden of this name.
pub fn golden(name: &str) -> Result<Fixture> {
    Fixture::open(&folder().join(name).with_extension("safetensors"))
}

/// The fixtures in a folder, in the order of their names.
///
/// # Errors
/// A folder that cannot be read.
pub fn fixtures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.map(|it| Ok(it?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let mut found: Vec<PathBuf> =
        paths.into_iter().filter(|it| it.extension().is_some_and(|it| it == "safetensors")).collect();
    found.sort();
    Ok(found)
}

/// The goldens of a kind.
///
/// # Errors
/// No golden of this kind: what nothing is compared with is not proved.
pub fn goldens(kind: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in fixtures_in(&folder())? {
        if Fixture::open(&path)?.text("kind")? == kind {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "expected goldens of kind {kind} in {}, got none", folder().display());
    Ok(found)
}

/// Compares every golden of a kind in f32.
///
/// # Errors
/// No golden; outputs that differ, each of them named.
pub fn check(kind: &str) -> Result<()> {
    check_in(kind, DType::F32)
}

/// Compares every golden of a network's kind, the weights in `dtype`.
///
/// # Errors
/// As [`check`].
pub fn check_in(kind: &str, dtype: DType) -> Result<()> {
    let mut wrong = Vec::new();
    for path in goldens(kind)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let comparisons = compare(&path, dtype).with_context(|| format!("golden {name}"))?;
        wrong.extend(comparisons.iter().filter(|it| !it.passed()).map(|it| format!("{name} {it}")));
    }
    ensure!(
        wrong.is_empty(),
        "expected the outputs of the goldens, got relative RMS and largest error:\n{}",
        wrong.join("\n")
    );
    Ok(())
}
