//! One report of everything, as JSON and as text.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use ddt_kernels::cuda::{Cuda, checks};
use ddt_parity::Tolerance;
use serde_json::{Value, json};

use crate::{
    compared::{self, Row},
    timings::{self, Scale},
};

/// The GPU, and where everything is.
pub(crate) struct Args {
    pub(crate) device: usize,
    pub(crate) fixtures: PathBuf,
    pub(crate) peer: PathBuf,
    pub(crate) out: PathBuf,
    pub(crate) emulated: bool,
}

/// A report that grows part by part; it is written after each, so a part that fails costs no other.
struct Report {
    json: Value,
    text: String,
    ok: bool,
}

/// Runs everything; says whether all held.
pub(crate) fn run(args: &Args, cuda: &Cuda) -> Result<bool> {
    let (free, total) = cuda.memory()?;
    let device = json!({
        "name": cuda.name(), "multiprocessors": cuda.multiprocessors(),
        "free_bytes": free, "total_bytes": total, "emulated": args.emulated, "cudnn": cuda.cudnn_version(),
    });
    let mut text = format!("device: {}, {} of {} MiB free\n", cuda.name(), free >> 20, total >> 20);
    text += &match cuda.cudnn_version() {
        Some(version) => format!("cuDNN {version}; checks and rates say which convolutions are its\n"),
        None => "no cuDNN 9: convolutions are gathered and multiplied\n".to_owned(),
    };
    let mut report = Report { json: json!({ "device": device }), text, ok: true };
    std::fs::create_dir_all(&args.out)?;
    report.part(&args.out, "kernels", kernels(cuda))?;
    report.part(&args.out, "fixtures", fixtures(args, cuda))?;
    let scale = if args.emulated { Scale::tiny()? } else { Scale::published()? };
    report.part(&args.out, "batches", compared::batches(cuda, &scale).and_then(compared))?;
    report.part(&args.out, "rates", rates(cuda))?;
    report.part(&args.out, "timings", times(cuda, &scale))?;
    report.peer(args)?;
    println!("{}", report.text);
    Ok(report.ok)
}

/// A part's rows, its lines, and whether all of it held.
type Part = Result<(Vec<Value>, String, bool)>;

impl Report {
    fn part(&mut self, out: &Path, name: &str, part: Part) -> std::io::Result<()> {
        match part {
            Ok((rows, lines, ok)) => {
                self.json[name] = json!(rows);
                self.text += &format!("\n{name}\n{lines}");
                self.ok &= ok;
            }
            Err(error) => {
                self.json[name] = json!({ "error": error.to_string() });
                self.text += &format!("\n{name}: FAILED: {error}\n");
                self.ok = false;
            }
        }
        self.write(out)
    }

    /// Adds the peer's timings, or the reason why there are none, which is no failure.
    fn peer(&mut self, args: &Args) -> std::io::Result<()> {
        match torch_timings(&args.peer, args.device) {
            Ok(rows) => {
                let lines: String = rows.iter().map(|row| format!("  {row}\n")).collect();
                self.text += &format!("\npeer\n{lines}");
                self.json["peer"] = json!(rows);
            }
            Err(reason) => {
                self.text += &format!("\npeer: not run: {reason}\n");
                self.json["peer"] = json!({ "not_run": reason });
            }
        }
        self.write(&args.out)
    }

    fn write(&mut self, out: &Path) -> std::io::Result<()> {
        self.json["ok"] = json!(self.ok);
        std::fs::write(out.join("report.json"), format!("{:#}\n", self.json))?;
        std::fs::write(out.join("report.txt"), &self.text)
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

fn kernels(cuda: &Cuda) -> Part {
    let checks = checks::verify_all(cuda)?;
    let (mut rows, mut lines) = (Vec::new(), String::new());
    for it in &checks {
        rows.push(json!({
            "name": it.name, "shape": it.shape, "error_rms_relative": it.error_rms_relative,
            "tolerance": it.tolerance, "passed": it.passed(),
        }));
        let (name, shape, error) = (&it.name, &it.shape, it.error_rms_relative);
        writeln!(lines, "  {name:<28} {shape:<44} {error:9.2e}  {}", verdict(it.passed()))?;
    }
    Ok((rows, lines, checks.iter().all(checks::Check::passed)))
}

fn fixtures(args: &Args, cuda: &Cuda) -> Part {
    let (rows, mut lines, held) = compared(compared::fixtures(&args.fixtures, cuda)?)?;
    if rows.is_empty() {
        writeln!(lines, "  none in {}", args.fixtures.display())?;
    }
    Ok((rows, lines, held))
}

fn compared(outputs: Vec<Row>) -> Part {
    let (mut rows, mut lines) = (Vec::new(), String::new());
    for Row { fixture, precision, output: it } in &outputs {
        let precision = format!("{precision:?}").to_lowercase();
        let tolerance = match it.tolerance {
            Tolerance::RelativeRms(limit) => limit,
            Tolerance::Absolute(_) | Tolerance::Exact => 0.0,
        };
        rows.push(json!({
            "fixture": fixture, "precision": precision, "output": it.name,
            "relative_rms": it.relative_rms, "tolerance": tolerance, "passed": it.passed(),
        }));
        let (output, error, verdict) = (&it.name, it.relative_rms, verdict(it.passed()));
        writeln!(lines, "  {fixture:<30} {precision:<5} {output:<22} {error:9.2e}  {verdict}")?;
    }
    Ok((rows, lines, outputs.iter().all(|it| it.output.passed())))
}

fn rates(cuda: &Cuda) -> Part {
    let (mut rows, mut lines) = (Vec::new(), String::new());
    for it in checks::bench_all(cuda)? {
        rows.push(json!({
            "name": it.name, "shape": it.shape, "time_us": it.time_us, "rate": it.rate, "unit": it.unit,
            "peak": it.peak,
        }));
        let (name, shape, us, rate, unit) = (it.name, it.shape, it.time_us, it.rate, it.unit);
        let share = if it.peak > 0.0 { 100.0 * rate / it.peak } else { 0.0 };
        writeln!(lines, "  {name:<28} {shape:<44} {us:10.1} us {rate:8.1} {unit:<8} {share:5.1} %")?;
    }
    Ok((rows, lines, true))
}

fn times(cuda: &Cuda, scale: &Scale) -> Part {
    let (mut rows, mut lines) = (Vec::new(), String::new());
    for it in timings::run(cuda, scale)? {
        let bytes = it.arena_bytes + it.weight_bytes;
        rows.push(json!({
            "name": it.name, "images": it.images, "side": it.side, "ms": it.milliseconds,
            "arena_bytes": it.arena_bytes, "weight_bytes": it.weight_bytes,
        }));
        let (name, images, side, ms) = (it.name, it.images, it.side, it.milliseconds);
        let mib = bytes >> 20;
        writeln!(lines, "  {name:<44} {images:>3} images of {side:>3}^2 {ms:10.3} ms {mib:>6} MiB")?;
    }
    Ok((rows, lines, true))
}

/// Arguments of the PyTorch peer: its fastest settings at the sizes that are timed here.
const CASES: [&[&str]; 4] = [
    &["--batch", "128", "--runs", "10"],
    &["--batch", "128", "--runs", "3", "--steps", "250"],
    &["--batch", "128", "--runs", "3", "--steps", "250", "--share", "5"],
    &["--batch", "1", "--runs", "20"],
];

/// The name by which another process finds a device of this one, which may see only some of the machine's.
fn visible(device: usize) -> String {
    let seen = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    seen.split(',').nth(device).filter(|it| !it.is_empty()).map_or_else(|| device.to_string(), str::to_owned)
}

/// The peer's timings, from the same GPU and the same hour; the error says why there are none.
fn torch_timings(folder: &Path, device: usize) -> Result<Vec<Value>, String> {
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
            .env("CUDA_VISIBLE_DEVICES", visible(device))
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
