//! The functions of `libcuda.so.1` and `libnccl.so.2`, found when they are first needed.
//!
//! Signatures and numbers are those of `cuda.h` and `nccl.h`.
#![expect(unsafe_code, reason = "gives the functions of NVIDIA's libraries their types")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use super::error::{NcclError, Result};

pub(super) const DRIVER: &str = "libcuda.so.1";
pub(super) const NCCL: &str = "libnccl.so.2";

/// `CUDA_SUCCESS` and `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_NO_DEVICE`.
pub(super) const NO_DEVICE: c_int = 100;
/// `CUDA_ERROR_NOT_READY`.
pub(super) const NOT_READY: c_int = 600;
/// `ncclInProgress`.
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclUint8`.
pub(super) const BYTES: c_int = 1;

/// The oldest NCCL with communicators that do not block: 2.14.0, as its header counts.
const OLDEST: c_int = 21_400;

/// A handle of either library.
pub(super) type Handle = *mut c_void;

/// Bytes of [`unique_id`](super::unique_id).
pub const ID_BYTES: usize = 128;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; ID_BYTES]);

/// `ncclConfig_t` of NCCL 2.14: later versions read as much as its size says, and as its version had.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

impl Config {
    pub(super) fn without_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: OLDEST as c_uint, blocking: 0 }
    }
}

/// A struct of functions, each with the name that it has in its library.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident of $file:ident { $($field:ident $name:literal: fn($($argument:ty),*);)* }) => {
        $(#[$doc])*
        pub(super) struct $table { $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl $table {
            fn of(library: &Library) -> Result<Self> {
                $(
                    let missing = |_| NcclError::NoFunction { library: $file, function: $name };
                    // SAFETY: the library's header declares this function so, in every version that is accepted.
                    let $field = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> c_int>($name.as_bytes()) };
                    let $field = *$field.map_err(missing)?;
                )*
                Ok(Self { $($field,)* })
            }
        }
    };
}

functions! {
    /// The driver.
    Driver of DRIVER {
        init "cuInit": fn(c_uint);
        device_count "cuDeviceGetCount": fn(*mut c_int);
        device "cuDeviceGet": fn(*mut c_int, c_int);
        retain_context "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int);
        release_context "cuDevicePrimaryCtxRelease_v2": fn(c_int);
        use_context "cuCtxSetCurrent": fn(Handle);
        create_stream "cuStreamCreate": fn(*mut Handle, c_uint);
        destroy_stream "cuStreamDestroy_v2": fn(Handle);
        query_stream "cuStreamQuery": fn(Handle);
        allocate "cuMemAlloc_v2": fn(*mut u64, usize);
        free "cuMemFree_v2": fn(u64);
        allocate_host "cuMemAllocHost_v2": fn(*mut Handle, usize);
        free_host "cuMemFreeHost": fn(Handle);
        to_device "cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, Handle);
        to_host "cuMemcpyDtoHAsync_v2": fn(Handle, u64, usize, Handle);
        error_name "cuGetErrorName": fn(c_int, *mut *const c_char);
    }
}

functions! {
    /// NCCL.
    Nccl of NCCL {
        unique_id "ncclGetUniqueId": fn(*mut UniqueId);
        join "ncclCommInitRankConfig": fn(*mut Handle, c_int, UniqueId, c_int, *mut Config);
        state "ncclCommGetAsyncError": fn(Handle, *mut c_int);
        finalize "ncclCommFinalize": fn(Handle);
        destroy "ncclCommDestroy": fn(Handle);
        abort "ncclCommAbort": fn(Handle);
        begin_group "ncclGroupStart": fn();
        end_group "ncclGroupEnd": fn();
        send "ncclSend": fn(*const c_void, usize, c_int, c_int, Handle, Handle);
        receive "ncclRecv": fn(Handle, usize, c_int, c_int, Handle, Handle);
    }
}

/// Both libraries. They stay loaded: NCCL has threads of its own.
pub(super) struct Libraries {
    pub(super) driver: Driver,
    pub(super) nccl: Nccl,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    _files: [Library; 2],
}

impl Libraries {
    /// Loads them, once a process.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<Result<Libraries>> = OnceLock::new();
        LOADED.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self> {
        // SAFETY: NVIDIA's driver, whose initialisers may run at any time.
        let driver_file = unsafe { Library::new(DRIVER) }.map_err(|_| NcclError::NoDriver)?;
        let driver = Driver::of(&driver_file)?;
        // SAFETY: as above, for NCCL.
        let nccl_file = unsafe { Library::new(NCCL) }.map_err(|_| NcclError::NoNccl)?;
        let mut version = 0;
        let missing = |_| NcclError::NoFunction { library: NCCL, function: "ncclGetVersion" };
        // SAFETY: all versions have this function, with this signature.
        let ask = unsafe { nccl_file.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion") };
        // SAFETY: it writes one number.
        let outcome = unsafe { ask.map_err(missing)?(&raw mut version) };
        if outcome != SUCCESS || version < OLDEST {
            // From 2.9 on 10,000 counts the major version, before it 1,000.
            let major = if version < 10_000 { 1000 } else { 10_000 };
            let minor = version % major;
            let version = format!("{}.{}.{}", version / major, minor / 100, minor % 100);
            return Err(NcclError::OldNccl { version });
        }
        let nccl = Nccl::of(&nccl_file)?;
        let missing = |_| NcclError::NoFunction { library: NCCL, function: "ncclGetErrorString" };
        // SAFETY: as for the others.
        let error_text =
            unsafe { nccl_file.get::<unsafe extern "C" fn(c_int) -> *const c_char>(b"ncclGetErrorString") };
        let error_text = *error_text.map_err(missing)?;
        let it = Self { driver, nccl, error_text, _files: [driver_file, nccl_file] };
        // SAFETY: its first call; flags must be 0.
        let outcome = unsafe { (it.driver.init)(0) };
        if outcome == NO_DEVICE {
            return Err(NcclError::NoDevice { ordinal: 0, count: 0 });
        }
        it.driver("start the driver", outcome)?;
        Ok(it)
    }

    /// Names the driver's call that failed.
    pub(super) fn driver(&self, call: &'static str, outcome: c_int) -> Result<()> {
        if outcome == SUCCESS {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: it writes the address of a constant text, or leaves it.
        unsafe { (self.driver.error_name)(outcome, &raw mut name) };
        Err(NcclError::Refused { library: DRIVER, call, text: words(name, outcome) })
    }

    /// Names the call of NCCL that failed; one that is in progress did not.
    pub(super) fn nccl(&self, call: &'static str, outcome: c_int) -> Result<()> {
        if matches!(outcome, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        // SAFETY: it takes any number, and returns the address of a constant text.
        let text = words(unsafe { (self.error_text)(outcome) }, outcome);
        Err(NcclError::Refused { library: NCCL, call, text })
    }
}

/// A library's words for an error, or its number.
fn words(text: *const c_char, number: c_int) -> String {
    if text.is_null() {
        return format!("error {number}");
    }
    // SAFETY: the libraries' texts are constants that end with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
