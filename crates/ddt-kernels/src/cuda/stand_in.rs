//! A driver and cuBLASLt without a GPU, to test what talks to them.
//!
//! The stand-in runs the kernels by the [emulation](super::emulation) and refuses what a driver refuses: calls without a
//! context, work beyond an allocation or on another device's stream, more threads or shared memory than a kernel was compiled
//! for, and whatever may not be recorded.
//! A program finds libraries when it starts, so each test runs in a process of its own:
//!
//! ```ignore
//! #[test]
//! fn a_product() {
//!     if !StandIn::default().plays("a_product") {
//!         return;
//!     }
//!     let cuda = Cuda::open(0).unwrap();
//! }
//! ```
#![expect(unsafe_code, reason = "calls a function of the stand-in")]

use std::ffi::{CString, OsString, c_char, c_ulong};
use std::path::PathBuf;
use std::process::Command;

use super::emulation::{compile, failed, library};
use super::error::Result;
use crate::compiler::link;

/// Says in a process which test it runs.
const TEST: &str = "DDT_STAND_IN";

/// The driver and the library that are there.
#[derive(Debug, Clone, Copy)]
pub struct StandIn {
    /// CUDA's version, such as 12040: below 13000 the driver refuses machine code made by newer toolkits.
    pub version: u32,
    /// Devices.
    pub devices: u32,
    /// The file of cuBLASLt; `None` where it is not installed.
    pub blas: Option<&'static str>,
    /// Value of `DDT_TUNE`.
    pub tune: Option<&'static str>,
}

impl Default for StandIn {
    /// The newest driver, and two devices.
    fn default() -> Self {
        Self { version: 13_000, devices: 2, blas: Some("libcublasLt.so.13"), tune: None }
    }
}

impl StandIn {
    /// Whether this process has the stand-in. If it has not, runs the test of this name in a process that has.
    ///
    /// # Panics
    /// If the test fails there, or if the stand-in cannot be built.
    #[expect(clippy::panic, reason = "a test that fails should stop")]
    pub fn plays(&self, test: &str) -> bool {
        if is_here() {
            return true;
        }
        let outcome = self.run(&["--exact", test, "--nocapture"]);
        assert!(outcome.unwrap_or_else(|error| panic!("{error}")), "{test} failed under {self:?}");
        false
    }

    /// Runs the running program again with the stand-in and these arguments; whether it succeeded.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`](super::CudaError::NoCompiler) if there is no C++ compiler;
    /// [`CudaError::Emulation`](super::CudaError::Emulation) if it fails, or the program does not start.
    pub fn run(&self, arguments: &[&str]) -> Result<bool> {
        let folder = self.build()?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(arguments).env(TEST, "1").env("LD_LIBRARY_PATH", &folder);
        // Of this run alone.
        let cache = folder.join(format!("cache-{}", std::process::id()));
        command.env("XDG_CACHE_HOME", &cache);
        if let Some(tune) = self.tune {
            command.env("DDT_TUNE", tune);
        }
        let status = command.status().map_err(failed);
        let _ = std::fs::remove_dir_all(cache);
        Ok(status?.success())
    }

    /// The folder with the libraries.
    fn build(&self) -> Result<PathBuf> {
        let kernels: OsString = library()?.into();
        let flags = [
            format!("-DCUDA_VERSION={}", self.version).into(),
            format!("-DDEVICES={}", self.devices).into(),
            kernels,
        ];
        let built = compile("stand_in.cpp", "ddt-stand-in", &flags)?;
        let folder = built.with_extension(self.blas.unwrap_or("alone"));
        std::fs::create_dir_all(&folder).map_err(failed)?;
        for name in ["libcuda.so.1"].into_iter().chain(self.blas) {
            link(&built, &folder.join(name)).map_err(failed)?;
        }
        Ok(folder)
    }
}

/// Whether this process has a stand-in.
pub fn is_here() -> bool {
    std::env::var_os(TEST).is_some()
}

/// How many `products`, `launches` or `compiled modules` the stand-in of this process has seen.
///
/// # Errors
/// [`CudaError::Emulation`](super::CudaError::Emulation) where there is no stand-in.
pub fn count(what: &str) -> Result<u64> {
    type Count = unsafe extern "C" fn(*const c_char) -> c_ulong;
    let what = CString::new(what).map_err(failed)?;
    // SAFETY: the driver, or the stand-in in its place; either is safe to load.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }.map_err(failed)?;
    // SAFETY: only the stand-in has this name, with this signature, in cu/stand_in.cpp.
    let counted = unsafe { driver.get::<Count>(b"ddt_stand_in_count\0") }.map_err(failed)?;
    // SAFETY: the text ends with a zero and outlives the call.
    Ok(u64::from(unsafe { counted(what.as_ptr()) }))
}
