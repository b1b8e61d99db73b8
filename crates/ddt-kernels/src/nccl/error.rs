//! Errors of NCCL, and of the driver below it.

/// Why GPUs cannot exchange bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// There is no driver library, so no GPU either.
    #[error("no CUDA driver found: expected libcuda.so.1, which comes with NVIDIA's driver")]
    NoDriver,
    /// There is a driver, but not this device.
    #[error("expected a CUDA device {ordinal}, got {count} devices (numbered from 0)")]
    NoDevice {
        /// The device that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// NCCL is not installed.
    #[error("no NCCL found: expected libnccl.so.2; set LD_LIBRARY_PATH to its folder")]
    NoNccl,
    /// NCCL is older than the calls that are made.
    #[error("expected NCCL 2.14 or newer, got {version}; update libnccl.so.2")]
    OldNccl {
        /// Its version, such as 2.13.4.
        version: String,
    },
    /// A library lacks a function.
    #[error("{library} has no {function}; update it")]
    NoFunction {
        /// The library's file.
        library: &'static str,
        /// The function.
        function: &'static str,
    },
    /// NCCL or the driver refused a call, or failed later.
    #[error("{call}: {library} says {text}")]
    Refused {
        /// The library.
        library: &'static str,
        /// The attempted call.
        call: &'static str,
        /// The library's words.
        text: String,
    },
    /// The caller did not want to wait any longer, or an earlier call failed: there is no communicator any more.
    #[error("the communicator has ended")]
    Ended,
    /// More bytes than an exchange takes.
    #[error(
        "expected at most {most} bytes at once and another rank below {size}, got {bytes} bytes for rank {partner}"
    )]
    Argument {
        /// The most bytes.
        most: usize,
        /// Number of ranks.
        size: usize,
        /// Bytes that were given.
        bytes: usize,
        /// The partner that was given.
        partner: usize,
    },
}

pub(super) type Result<T> = std::result::Result<T, NcclError>;
