//! `ddt doctor`: what this machine and this build are, for bug reports.

use std::{env, fmt::Write, path::PathBuf};

use anyhow::Result;
use ddt::hub::{Hub, HubFile, Release};
use serde::Serialize;

/// Says what this build is and what it finds on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON, as bug reports should have it
    #[arg(long)]
    json: bool,
}

/// The report. It holds no token, and a user's name only as part of the cache's path.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    built_for: String,
    optimised: bool,
    features: Vec<&'static str>,
    processor: Option<String>,
    instructions: Vec<&'static str>,
    cores: usize,
    memory_gb: Option<f64>,
    gpu: String,
    hub_cache: PathBuf,
    hub_offline: bool,
    /// Whether each published network and its autoencoder are in the cache.
    published: Vec<(String, bool, bool)>,
    /// Variables that change what happens, and are set.
    variables: Vec<String>,
}

const VARIABLES: [&str; 8] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "RAYON_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
];

pub(crate) fn run(args: &Args) -> Result<String> {
    let report = Report::new();
    if args.json {
        return Ok(serde_json::to_string_pretty(&report)?);
    }
    report.text()
}

impl Report {
    fn new() -> Self {
        let hub = Hub::from_env();
        let found = |release: Release| {
            let is_there = |file: HubFile| hub.find(&file).is_some();
            let decodes = release.autoencoder().decoding_files().into_iter().all(is_there);
            (release.to_string(), is_there(release.network()), decodes)
        };
        Self {
            version: ddt::VERSION,
            built_for: format!("{}-{}", env::consts::ARCH, env::consts::OS),
            optimised: !cfg!(debug_assertions),
            features: [("cuda", cfg!(feature = "cuda")), ("candle-cuda", cfg!(feature = "candle-cuda"))]
                .into_iter()
                .filter_map(|(name, there)| there.then_some(name))
                .collect(),
            processor: field("/proc/cpuinfo", "model name"),
            instructions: instructions(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gb: field("/proc/meminfo", "MemTotal")
                .and_then(|it| it.split_whitespace().next()?.parse::<f64>().ok())
                .map(|kib| (kib * 1024.0 / 1e8).round() / 10.0),
            gpu: gpu(),
            published: Release::ALL.map(found).to_vec(),
            hub_cache: hub.cache,
            hub_offline: hub.offline,
            variables: VARIABLES
                .iter()
                .filter_map(|name| Some(format!("{name}={}", env::var(name).ok()?)))
                .collect(),
        }
    }

    fn text(&self) -> Result<String> {
        let unknown = || "unknown".to_owned();
        let list = |items: &[&str]| if items.is_empty() { "none".to_owned() } else { items.join(" ") };
        let build = if self.optimised { "optimised" } else { "with debug assertions" };
        let mut text = String::new();
        writeln!(
            text,
            "ddt           {} for {}, {build}, features: {}",
            self.version,
            self.built_for,
            list(&self.features)
        )?;
        writeln!(text, "processor     {}", self.processor.clone().unwrap_or_else(unknown))?;
        writeln!(text, "instructions  {}", list(&self.instructions))?;
        let memory = self.memory_gb.map_or_else(unknown, |it| format!("{it:.1} GB"));
        writeln!(text, "cores         {}, memory {memory}", self.cores)?;
        writeln!(text, "GPU           {}", self.gpu)?;
        let offline = if self.hub_offline { ", offline" } else { "" };
        writeln!(text, "hub's cache   {}{offline}", self.hub_cache.display())?;
        for (name, network, autoencoder) in &self.published {
            let said = |found: &bool| if *found { "fetched" } else { "missing" };
            writeln!(text, "  {name}: network {}, autoencoder {}", said(network), said(autoencoder))?;
        }
        for variable in &self.variables {
            writeln!(text, "variable      {variable}")?;
        }
        write!(text, "For a bug report send the output of `ddt doctor --json` and the command that failed.")?;
        Ok(text)
    }
}

/// The first value of a field in one of the system's own files.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|it| it.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Vector instructions that the kernels choose from.
fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("amx", ddt::kernels::InstructionSet::has_amx()),
        ];
        all.into_iter().filter(|it| it.1).map(|it| it.0).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec!["neon"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

#[cfg(feature = "cuda")]
fn gpu() -> String {
    ddt::gpu::Cuda::open(0).map_or_else(|error| error.to_string(), |it| it.name().to_owned())
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> String {
    match field("/proc/driver/nvidia/version", "NVRM version") {
        Some(driver) => format!("driver {driver}, which this build does not use (feature cuda)"),
        None => "none".to_owned(),
    }
}
