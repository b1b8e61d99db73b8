//! A CUDA toolkit: the machine's, or one of our own made of the wheels that NVIDIA publishes.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Parts of the toolkit that compile kernels. Libraries are looked for when a program runs, so none is linked here.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
];

/// The folder of a toolkit with `bin/nvcc`: that of `CUDA_HOME` or `CUDA_PATH`, of the `nvcc` on the path, the
/// usual place, or our own in the user's cache folder, made if it is not there.
pub(super) fn find_or_make() -> Result<PathBuf> {
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable).map(PathBuf::from) {
            ensure!(has_nvcc(&home), "{variable} is {}, which has no bin/nvcc", home.display());
            return Ok(home);
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|it| it.parent().map(Path::to_owned));
    if let Some(home) = on_path.chain(["/usr/local/cuda".into()]).find(|home| has_nvcc(home)) {
        return Ok(home);
    }
    let folder = cache_folder()?.join("ddt").join("cuda-13.0");
    match own(&folder) {
        Some(home) => Ok(home),
        None => make(&folder),
    }
}

#[cfg(unix)]
pub(super) fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
pub(super) fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

fn has_nvcc(home: &Path) -> bool {
    home.join("bin").join("nvcc").is_file()
}

fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| Some(set("HOME")?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep a toolkit; set CUDA_HOME to one")
}

/// Our own, if it was made whole: a marker is written last.
fn own(folder: &Path) -> Option<PathBuf> {
    if !folder.join("complete").is_file() {
        return None;
    }
    // lib/pythonX.Y/site-packages/nvidia/cu13
    let pythons = std::fs::read_dir(folder.join("lib")).ok()?.flatten();
    let home = |python: PathBuf| python.join("site-packages/nvidia/cu13");
    pythons.map(|it| home(it.path())).find(|it| has_nvcc(it))
}

fn make(folder: &Path) -> Result<PathBuf> {
    println!("no CUDA toolkit found; making one in {}", folder.display());
    if folder.exists() {
        std::fs::remove_dir_all(folder).context("cannot remove what was made in part")?;
    }
    let text = folder.as_os_str().to_owned();
    call("python3", ["-m".into(), "venv".into(), text].to_vec())?;
    let mut arguments: Vec<OsString> =
        ["install", "--quiet", "--disable-pip-version-check", "--timeout", "30", "--retries", "2"]
            .map(Into::into)
            .to_vec();
    arguments.extend(WHEELS.map(Into::into));
    call(folder.join("bin/pip"), arguments)?;
    std::fs::write(folder.join("complete"), WHEELS.join("\n"))?;
    own(folder).with_context(|| format!("the wheels left no nvcc in {}", folder.display()))
}

fn call(program: impl AsRef<std::ffi::OsStr>, arguments: Vec<OsString>) -> Result<()> {
    let shown = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(program.as_ref())
        .args(arguments)
        .output()
        .with_context(|| format!("no CUDA toolkit can be made: {shown} does not start"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("no CUDA toolkit can be made: {shown}: {}", said.lines().last().unwrap_or("it failed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_toolkit_of_our_own_counts() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("lib/python3.11/site-packages/nvidia/cu13");
        std::fs::create_dir_all(home.join("bin")).unwrap();
        std::fs::write(home.join("bin/nvcc"), "").unwrap();
        assert_eq!(own(folder.path()), None);
        std::fs::write(folder.path().join("complete"), "").unwrap();
        assert_eq!(own(folder.path()), Some(home.clone()));
        std::fs::remove_file(home.join("bin/nvcc")).unwrap();
        assert_eq!(own(folder.path()), None);
    }
}
