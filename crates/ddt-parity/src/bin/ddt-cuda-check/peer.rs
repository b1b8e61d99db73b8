//! The PyTorch peer's timings, from the same GPU and the same hour.

use std::{path::Path, process::Command};

use serde_json::Value;

/// Arguments of the peer: its fastest settings at the sizes that are timed here.
const CASES: [&[&str]; 4] = [
    &["--batch", "128", "--runs", "10"],
    &["--batch", "128", "--runs", "3", "--steps", "250"],
    &["--batch", "128", "--runs", "3", "--steps", "250", "--share", "5"],
    &["--batch", "1", "--runs", "20"],
];

/// Runs the peer; the error says why there are no figures of it.
pub(crate) fn run(folder: &Path, device: usize) -> Result<Vec<Value>, String> {
    let script = folder.join("bench_torch.py");
    if !script.is_file() {
        return Err(format!("{} is not there", script.display()));
    }
    let torch =
        Command::new("python3").args(["-c", "import torch; assert torch.cuda.is_available()"]).output();
    match torch {
        Err(error) => return Err(format!("python3 does not start: {error}")),
        Ok(it) if !it.status.success() => return Err("python3 has no torch that sees a GPU".to_owned()),
        Ok(_) => {}
    }
    let mut rows = Vec::new();
    for case in CASES {
        let strongest = ["--preset", "ddt-xl2", "--device", "cuda", "--dtype", "bf16w"];
        let both = ["--compile", "no", "yes", "--rotary", "real"];
        let output = Command::new("python3")
            .arg(&script)
            .args(strongest)
            .args(both)
            .args(case)
            .env("CUDA_VISIBLE_DEVICES", device.to_string())
            .output()
            .map_err(|error| format!("python3 does not start: {error}"))?;
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        rows.extend(lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{case:?}: {}", said.lines().last().unwrap_or("it failed")));
        }
    }
    Ok(rows)
}
