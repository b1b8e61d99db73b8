//! Errors of a GPU.

/// The result of an operation on a GPU.
pub type Result<T> = std::result::Result<T, CudaError>;

/// An error on a GPU, or in opening one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver library, so no GPU either.
    #[error(
        "no CUDA driver found: expected libcuda.so.1, which comes with NVIDIA's driver; use the CPU here"
    )]
    NoDriver,
    /// There is a driver, but not this device.
    #[error("expected a CUDA device {ordinal}, got {count} devices (numbered from 0)")]
    NoDevice {
        /// The device that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver is older than the calls that are made.
    #[error(
        "expected a driver of CUDA 12.0 or newer (R525), got one of CUDA {version}; update NVIDIA's driver"
    )]
    OldDriver {
        /// The version of CUDA that it serves, such as 11.8.
        version: String,
    },
    /// The driver takes the kernels neither as machine code nor as PTX.
    #[error(
        "the driver, of CUDA {driver}, loads neither the kernels' machine code nor their PTX {ptx}, made by nvcc \
         {toolkit}: {text}; update NVIDIA's driver"
    )]
    Kernels {
        /// The version of CUDA that the driver serves.
        driver: String,
        /// The version of the portable code.
        ptx: String,
        /// The release of the compiler.
        toolkit: String,
        /// The driver's words.
        text: String,
    },
    /// The device is older than the kernels.
    #[error("expected a device of compute capability 8.0 or newer (A100, H100), got {major}.{minor}")]
    TooOld {
        /// Before the point.
        major: i32,
        /// Behind it.
        minor: i32,
    },
    /// The library that multiplies matrices is not there.
    #[error(
        "no cuBLASLt found: expected libcublasLt.so.13 or .12, which comes with the CUDA toolkit; \
         set LD_LIBRARY_PATH to its folder"
    )]
    NoCublas,
    /// The device's memory does not suffice.
    #[error("out of GPU memory: asked for {asked} bytes, {free} of {total} bytes are free; do less at once")]
    OutOfMemory {
        /// Bytes asked for.
        asked: usize,
        /// Bytes free at that time.
        free: usize,
        /// Bytes the device has.
        total: usize,
    },
    /// The driver refused a call, or a kernel failed before it.
    #[error("{call}: the CUDA driver says {name}: {text}")]
    Driver {
        /// The attempted call.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// The driver's words.
        text: String,
    },
    /// A library refused a call.
    #[error("{call}: {library} says {status}")]
    Library {
        /// The library.
        library: &'static str,
        /// The attempted call.
        call: &'static str,
        /// Its name of the error.
        status: String,
    },
    /// An argument does not fit the kernel.
    #[error("{kernel}: expected {expected}, got {got}")]
    Argument {
        /// The launcher.
        kernel: &'static str,
        /// The accepted values.
        expected: String,
        /// The given value.
        got: String,
    },
    /// There is nothing to compile the kernels for the CPU with.
    #[cfg(feature = "cuda-emulation")]
    #[error("kernels on the CPU: expected a C++ compiler, $CXX, c++, g++ or clang++; none is there")]
    NoCompiler,
    /// The kernels could not be compiled for the CPU.
    #[cfg(feature = "cuda-emulation")]
    #[error("kernels on the CPU: expected a C++17 compiler that compiles them, got: {got}")]
    Emulation {
        /// The failure.
        got: String,
    },
}

/// Fails with [`CudaError::Argument`] unless `holds`.
pub(crate) fn expect(
    holds: bool,
    kernel: &'static str,
    expected: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(CudaError::Argument { kernel, expected: expected.to_string(), got: got.to_string() })
}
