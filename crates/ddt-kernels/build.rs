//! Compiles the CUDA kernels into one image, if the feature `cuda` asks for them.

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

/// Machine code for A100 and H100, and portable code that drivers compile for what comes after them.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_80,code=compute_80"];

fn main() {
    println!("cargo::rerun-if-changed=cu");
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some()
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
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-Xptxas", "-v", "-t", "0", "-I", "cu"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command.arg(&source).arg("-o").arg(out.join("kernels.fatbin"));
    let output = command.output().map_err(|error| {
        format!(
            "the feature `cuda` needs the CUDA compiler, and {} does not start ({error}); \
             run `cargo xtask cuda`, which sets one up, or set CUDA_HOME to a toolkit of version 12 or 13",
            nvcc.display()
        )
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Registers and spills of every kernel, for whoever looks.
    std::fs::write(out.join("registers.txt"), report(&said)).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("error")).take(5).collect();
    Err(format!("{} failed: {}", Path::new(&nvcc).display(), errors.join("; ")))
}

/// The lines of the assembler's report that name kernels, registers and spills.
fn report(said: &str) -> String {
    let telling = |line: &&str| ["Compiling entry", "spill", "Used"].iter().any(|word| line.contains(word));
    said.lines().filter(telling).fold(String::new(), |text, line| text + line + "\n")
}
