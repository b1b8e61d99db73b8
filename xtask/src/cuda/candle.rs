//! What candle's CUDA backend is built and run with where there is no GPU: a toolkit whose libraries are the stand-in for
//! NVIDIA's, with candle's own kernels in it, compiled for the CPU.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    ffi::OsStr,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde_json::Value;
use xshell::{Shell, cmd};

/// Sources of candle's kernels. Its others are sorting and quantised weights, which nothing here uses and which take
/// minutes to compile.
const KERNELS: [&str; 9] =
    ["affine", "binary", "cast", "conv", "fill", "indexing", "reduce", "ternary", "unary"];
/// Headers of CUDA that they include.
const HEADERS: [&str; 4] = ["cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "cuda/std/limits"];
/// Libraries that candle's programs are linked with; all are the one stand-in.
const LIBRARIES: [&str; 6] = ["cuda", "cublas", "cublasLt", "curand", "nvrtc", "cudart"];
/// The name by which a program looks for it.
const LOADED: &str = "libcuda.so.1";
/// What stands before the name of a function of NVIDIA's libraries. In two parts: the word is for code that is so.
const FOREIGN: &str = concat!("pub un", "safe fn ");

/// A compiler that leaves out the kernels that nothing here uses.
const NVCC: &str = r#"#!/bin/sh
for argument; do
    case $previous in
    -o) out=$argument ;;
    --output-directory) folder=$argument ;;
    esac
    case $argument in
    */moe_gguf.cu) left_out=$HERE/unused.c ;;
    */moe/*.cu | */mmvq_gguf.cu | */mmq_gguf/*.cu | */quantized.cu | */sort.cu) left_out=/dev/null ;;
    esac
    previous=$argument
done
case "$left_out $*" in
" "*) exec "$HOME_OF_NVCC/bin/nvcc" "$@" ;;
*" --lib "*) exec "$HOME_OF_NVCC/bin/nvcc" "$@" ;;
*" --ptx "*) printf '.version 7.8\n.target sm_80\n.address_size 64\n' >"$folder/$(basename "$argument" .cu).ptx" ;;
*) exec c++ -x c -c -w -fPIC -o "$out" "$left_out" ;;
esac
"#;

/// Makes the toolkit in `folder`, if it is not there yet, with the compiler of the toolkit in `home`.
pub(super) fn toolkit(root: &Path, home: &Path, folder: &Path) -> Result<()> {
    let [kernels, bindings] = sources(root)?;
    let ours = root.join("crates/ddt-kernels/cu");
    let made_of = made_of(&[&ours, &kernels, &bindings], home)?;
    let marker = folder.join("made-of");
    if fs::read_to_string(&marker).is_ok_and(|it| it == made_of) {
        return Ok(());
    }
    println!("making the stand-in for candle in {}", folder.display());
    let parts = folder.join("parts");
    for name in ["bin", "lib", "parts/cuda/std"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let unused = names(&kernels.join("ffi.rs"), "pub fn ")?;
    fs::write(folder.join("unused.c"), refusing(&unused, "void", ""))?;
    let nvcc = folder.join("bin/nvcc");
    let script =
        NVCC.replace("$HERE", &folder.to_string_lossy()).replace("$HOME_OF_NVCC", &home.to_string_lossy());
    fs::write(&nvcc, script)?;
    super::toolkit::make_executable(&nvcc)?;
    link(&home.join("include"), &folder.join("include"))?;

    for header in HEADERS {
        fs::write(parts.join(header), "#include \"candle.h\"\n")?;
    }
    let mut refused = BTreeSet::new();
    for library in ["driver", "cublas", "cublaslt", "curand", "nvrtc"] {
        refused.extend(names(&bindings.join(library).join("sys/mod.rs"), FOREIGN)?);
    }
    let weak = "__attribute__((weak)) ";
    fs::write(parts.join("refused.c"), format!("{DECLARED}{}", refusing(&refused, "int", weak)))?;
    let mut compiled: Vec<Result<PathBuf>> =
        KERNELS.par_iter().map(|name| compile_kernels(name, &kernels, &ours, &parts)).collect();
    for (source, flags) in [("emulate.cpp", "-O1"), ("stand_in_candle.cpp", "-O2")] {
        compiled.push(compile(&ours.join(source), &parts, [flags]));
    }
    compiled.push(compile(&parts.join("refused.c"), &parts, ["-xc"]));
    let objects = compiled.into_iter().collect::<Result<Vec<_>>>()?;
    let library = folder.join("lib").join(LOADED);
    let soname = format!("-Wl,-soname,{LOADED}");
    let flags = ["-shared", &soname, "-o"].map(OsStr::new);
    let objects = objects.iter().map(|it| it.as_os_str());
    call(Command::new("c++").args(flags).arg(&library).args(objects))?;
    for name in LIBRARIES {
        link(Path::new(LOADED), &folder.join("lib").join(format!("lib{name}.so")))?;
    }
    Ok(fs::write(marker, made_of)?)
}

/// What the functions that refuse need.
const DECLARED: &str = "#include <stdio.h>\n";

/// The sources of candle's kernels and of the bindings to NVIDIA's libraries.
fn sources(root: &Path) -> Result<[PathBuf; 2]> {
    let sh = Shell::new()?;
    sh.change_dir(root);
    let features = ["--features", "ddt-kernels/candle-cuda"];
    let json = cmd!(sh, "cargo metadata --format-version 1 --locked {features...}").quiet().read()?;
    let metadata: Value = serde_json::from_str(&json)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let source = |name: &str| {
        let package = packages.iter().find(|it| it["name"] == name);
        let manifest = package.and_then(|it| it["manifest_path"].as_str());
        let manifest = manifest.with_context(|| format!("the workspace does not depend on {name}"))?;
        Ok(Path::new(manifest).with_file_name("src"))
    };
    let both: Result<Vec<PathBuf>> = ["candle-kernels", "cudarc"].into_iter().map(source).collect();
    both?.try_into().ok().context("expected two packages")
}

/// All that the toolkit depends on, as a text: a hash of our sources, and the folders of the others, whose names have
/// their versions.
fn made_of(folders: &[&Path; 3], home: &Path) -> Result<String> {
    let [ours, others @ ..] = folders;
    let mut hash = DefaultHasher::new();
    let mut files = fs::read_dir(ours)?.map(|it| Ok(it?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    for file in files {
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hash);
    }
    (NVCC, KERNELS, HEADERS, LIBRARIES).hash(&mut hash);
    let [kernels, bindings] = others.map(|it| it.display());
    Ok(format!("{:016x}\n{kernels}\n{bindings}\n{}\n", hash.finish(), home.display()))
}

/// The functions that a source of Rust declares.
fn names(source: &Path, before: &str) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(before));
    let names: BTreeSet<String> =
        lines.filter_map(|line| line.split_once(['(', '<'])).map(|it| it.0.to_owned()).collect();
    ensure!(!names.is_empty(), "expected functions after {before:?} in {}, found none", source.display());
    Ok(names)
}

/// Functions of C that do nothing; those with a result say so, and return an error.
fn refusing(names: &BTreeSet<String>, result: &str, attribute: &str) -> String {
    let body = |name: &str| match result {
        "int" => format!("fprintf(stderr, \"stand-in: {name} is not there\\n\"); return 999;"),
        _ => "__builtin_trap();".to_owned(),
    };
    names.iter().map(|name| format!("{attribute}{result} {name}(void) {{ {} }}\n", body(name))).collect()
}

/// Compiles one source of candle's kernels, with an entry of the emulation for each.
fn compile_kernels(name: &str, kernels: &Path, ours: &Path, parts: &Path) -> Result<PathBuf> {
    let mut command = Command::new("c++");
    command.args(["-E", "-P", "-x", "c++", "-std=c++17", "-U_FORTIFY_SOURCE"]);
    command.arg("-I").arg(parts).arg("-I").arg(ours).arg(kernels.join(name).with_extension("cu"));
    let mut text = call(&mut command)?;
    let after = text.split("extern \"C\"").skip(1).map(str::trim_start);
    let functions = after.filter_map(|it| it.strip_prefix("void")?.trim_start().split_once('('));
    let found: BTreeSet<String> = functions.map(|it| it.0.to_owned()).collect();
    ensure!(!found.is_empty(), "expected kernels in {name}.cu of candle, found none");
    for kernel in found {
        text += &format!("static emulate::Entry entry_{kernel}(\"{kernel}\", &{kernel});\n");
    }
    let source = parts.join(format!("{name}.cpp"));
    fs::write(&source, text)?;
    compile(&source, parts, ["-O1"])
}

/// Hardened `longjmp`, which fortified sources have, refuses to go from one stack to another.
fn compile<const N: usize>(source: &Path, parts: &Path, flags: [&str; N]) -> Result<PathBuf> {
    let object = parts.join(source.file_name().unwrap_or_default()).with_extension("o");
    let mut command = Command::new("c++");
    if !flags.contains(&"-xc") {
        command.arg("-std=c++17");
    }
    command.args(["-U_FORTIFY_SOURCE", "-fPIC", "-w", "-c"]).args(flags);
    call(command.arg(source).arg("-o").arg(&object))?;
    Ok(object)
}

/// Returns what a program prints.
fn call(command: &mut Command) -> Result<String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{shown} does not start"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = said.lines().filter(|line| line.contains("error")).take(5).collect();
        bail!("{command:?} failed: {}", errors.join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<()> {
    match fs::remove_file(at) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(std::os::unix::fs::symlink(to, at)?)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    bail!("the stand-in is for Linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_what_is_before_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("sys.rs");
        let text = format!("{FOREIGN}cuInit(flags: u32) {{}}\n    pub fn other(x: i32);\nfn own() {{}}\n");
        fs::write(&source, text).unwrap();
        let found = |before| names(&source, before).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(found(FOREIGN), ["cuInit"]);
        assert_eq!(found("pub fn "), ["other"]);
        assert!(names(&source, "extern fn ").is_err());
    }
}
