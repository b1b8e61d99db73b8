//! The pipeline with the demo weights.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod generating;
mod refusals;

use std::{ops::ControlFlow, path::Path};

use ddt::{Error, Generated, Opened, Pipeline, PipelineConfig, Request, Result, flow::TimeGrid, hub::Hub};

/// A hub that has nothing in its cache and may not be asked.
fn no_hub() -> Hub {
    Hub { cache: "absent".into(), endpoint: "https://hub.invalid".to_owned(), token: None, offline: true }
}

/// The demo with few steps.
fn demo(steps: usize) -> PipelineConfig {
    PipelineConfig { grid: TimeGrid::new(steps, Some(0.04), 1.0).unwrap(), ..PipelineConfig::new("demo") }
}

fn load(config: &PipelineConfig) -> Result<Pipeline> {
    Opened::new(config, &no_hub())?.load()
}

fn generate(config: &PipelineConfig, request: &Request) -> Generated {
    load(config).unwrap().generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// An error and its causes, from the outside in.
fn chain(error: &Error) -> String {
    let sources = std::iter::successors(Some(error as &dyn std::error::Error), |it| it.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The demo's network as a file.
fn demo_file(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("ddt-cifar10.safetensors");
    std::fs::write(&path, ddt_demo::NETWORK).unwrap();
    path
}
