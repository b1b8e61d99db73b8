//! Compiles the CUDA kernels into one image, if the features `cuda` or `candle-cuda` ask for them.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: [&str; 11] = [
    "add_rows",
    "attention",
    "attention_plain",
    "copy",
    "gate_norm",
    "group_norm",
    "patch",
    "softmax",
    "step",
    "swiglu",
    "windows",
];

/// Machine code for A100 and H100.
const TARGETS: [&str; 2] = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90"];

/// The version that portable code (PTX) states at most: that of CUDA 11.8, whose instructions are all it uses. Drivers
/// refuse versions newer than themselves.
const PTX_VERSION: &str = "7.8";

fn main() {
    println!("cargo::rerun-if-changed=cu");
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_DRIVER").is_some()
        && let Err(message) = compile()
    {
        println!("cargo::error={message}");
    }
}

fn compile() -> Result<(), String> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let out = variable("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().find_map(variable);
    let nvcc = home.map_or_else(|| PathBuf::from("nvcc"), |home| home.join("bin/nvcc"));
    // One image holds one program: kernels are compiled as a single source.
    let source = out.join("kernels.cu");
    let includes: String = KERNELS.iter().map(|name| format!("#include \"{name}.cu\"\n")).collect();
    std::fs::write(&source, includes).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut machine_code = vec!["-fatbin", "--no-compress", "-Xptxas", "-v", "-t", "0"];
    machine_code.extend(TARGETS.into_iter().flat_map(|it| ["-gencode", it]));
    let said = run(&nvcc, &source, &machine_code, &out.join("kernels.fatbin"))?;
    // Registers and spills of every kernel, for whoever looks.
    std::fs::write(out.join("registers.txt"), report(&said)).map_err(|error| error.to_string())?;

    // For drivers older than the toolkit, and GPUs newer than it, which compile this themselves.
    let ptx = out.join("kernels.ptx");
    run(&nvcc, &source, &["-ptx", "-arch=compute_80"], &ptx)?;
    let text = std::fs::read_to_string(&ptx).map_err(|error| format!("{}: {error}", ptx.display()))?;
    std::fs::write(&ptx, portable(&text)?).map_err(|error| format!("{}: {error}", ptx.display()))
}

/// Returns what the compiler said.
fn run(nvcc: &Path, source: &Path, flags: &[&str], result: &Path) -> Result<String, String> {
    let mut command = Command::new(nvcc);
    // Newer C++ compilers than the toolkit knows do: their headers are not used.
    command.args(["-std=c++17", "-O3", "-allow-unsupported-compiler", "-I", "cu"]).args(flags);
    let output = command.arg(source).arg("-o").arg(result).output().map_err(|error| {
        format!(
            "the features `cuda` and `candle-cuda` need the CUDA compiler, and {} does not start ({error}); \
             run `cargo xtask cuda`, which sets one up, or set CUDA_HOME to a toolkit of version 12 or 13",
            nvcc.display()
        )
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("error")).take(5).collect();
    Err(format!("{} failed: {}", nvcc.display(), errors.join("; ")))
}

/// PTX with a version of at most [`PTX_VERSION`], ended by a zero as the driver takes it.
fn portable(ptx: &str) -> Result<String, String> {
    let number = |version: &str| {
        let (major, minor) = version.trim().split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let stated = ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or_default();
    let newer = number(stated).ok_or("the compiler's PTX states no version")?
        > number(PTX_VERSION).unwrap_or_default();
    let version = if newer { PTX_VERSION } else { stated };
    Ok(ptx.replacen(&format!(".version {stated}"), &format!(".version {version}"), 1) + "\0")
}

/// The lines of the assembler's report that name kernels, registers and spills.
fn report(said: &str) -> String {
    let telling = |line: &&str| ["Compiling entry", "spill", "Used"].iter().any(|word| line.contains(word));
    said.lines().filter(telling).fold(String::new(), |text, line| text + line + "\n")
}
