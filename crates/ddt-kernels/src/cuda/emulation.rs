//! Emulation of a GPU on the CPU, to test kernels and their launchers.
//!
//! The kernels' sources are compiled by the system's C++ compiler, with each thread of a block as a fiber
//! and a warp's instructions (shuffles, `ldmatrix`, tensor-core operations) written from their manual.
//! Launchers, arguments, grids and index arithmetic are the ones a GPU gets; speed is not.
#![expect(unsafe_code, reason = "runs compiled kernels on addresses, as a driver does")]

use std::collections::HashMap;
use std::ffi::{CString, OsString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::bf16;
use rayon::prelude::*;

use super::backend::{Backend, GemmPlaces, GemmShape, Recording};
use super::device::Cuda;
use super::error::{CudaError, Result};
use super::kernels;
use super::launch::{Arguments, Launch};
use super::memory::{Device, Float};
use crate::compiler;

/// In which order the threads of a block come to run: results may not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Forwards,
    /// From the last to the first.
    Backwards,
}

/// Compiles the kernels for the CPU, once a version of their sources, and opens it as a device.
///
/// # Errors
/// [`CudaError::NoCompiler`] if there is no C++ compiler; [`CudaError::Emulation`] if it fails.
pub fn open(order: Order) -> Result<Cuda> {
    let path = library()?;
    // SAFETY: the library was compiled from this crate's sources; its initialisers fill a table of kernels.
    let library = unsafe { libloading::Library::new(&path) }.map_err(failed)?;
    // SAFETY: the function is defined in cu/emulate.cpp with this signature; it lives as long as `library`.
    let run = *unsafe { library.get::<Run>(b"ddt_emulate") }.map_err(failed)?;
    let emulated =
        Emulator { run, order, memory: Mutex::default(), recording: Mutex::default(), _library: library };
    for name in kernels::names() {
        emulated.find(name)?;
    }
    Ok(Cuda { device: Device::new(Emulated(Arc::new(emulated))) })
}

/// Name, grid, threads of a block, bytes of shared memory, arguments, their number, order.
type Run = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    c_uint,
    *mut *mut c_void,
    c_uint,
    c_int,
) -> c_int;

/// Bytes of NaN before and behind every allocation: reading them shows in results, writing them in the end.
const GUARD: usize = 1 << 12;
const NAN: u8 = 0xFF;

struct Emulator {
    run: Run,
    order: Order,
    /// By address; vectors of 16 bytes, for the alignment.
    memory: Mutex<HashMap<u64, Allocation>>,
    recording: Mutex<Option<Vec<Work>>>,
    _library: libloading::Library,
}

struct Allocation {
    cells: Vec<u128>,
    bytes: usize,
}

/// One recorded operation.
#[derive(Debug, Clone)]
enum Work {
    Launch(Box<Launch>),
    Copy { from: u64, to: u64, bytes: usize },
    Gemm(GemmShape, GemmPlaces),
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Emulator({:?})", self.order)
    }
}

impl Emulator {
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if let Some(recording) = &mut *lock(&self.recording) {
            recording.push(Work::Copy { from, to, bytes });
            return Ok(());
        }
        self.inside(from, bytes)?;
        self.inside(to, bytes)?;
        // SAFETY: both ranges are inside allocations; `copy` allows them to overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        if let Some(recording) = &mut *lock(&self.recording) {
            recording.push(Work::Launch(Box::new(launch.clone())));
            return Ok(());
        }
        match self.run(launch)? {
            0 => Ok(()),
            1 => Err(failed(format!("no kernel {}", launch.kernel))),
            2 => Err(failed(format!(
                "{} takes another number of arguments than {}",
                launch.kernel,
                launch.arguments.len()
            ))),
            _ => Err(failed(format!("threads of {} wait for each other for ever", launch.kernel))),
        }
    }

    fn gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        if let Some(recording) = &mut *lock(&self.recording) {
            recording.push(Work::Gemm(shape, places));
            return Ok(());
        }
        self.inside(places.workspace, shape.workspace)?;
        if shape.element == bf16::INDEX {
            multiply::<bf16>(shape, places);
        } else {
            multiply::<f32>(shape, places);
        }
        Ok(())
    }

    /// The library's answer; see `cu/emulate.cpp`.
    fn run(&self, launch: &Launch) -> Result<c_int> {
        let Launch { kernel, grid, block, shared, arguments } = launch;
        let name = CString::new(*kernel).map_err(failed)?;
        let grid = [grid.0, grid.1, grid.2];
        let mut values = arguments.pointers();
        let order = c_int::from(self.order == Order::Backwards);
        // SAFETY: launchers pass slices that they have measured, and the number of arguments is checked
        // against the kernel's; the kernels are those a GPU would run.
        Ok(unsafe {
            (self.run)(
                name.as_ptr(),
                grid.as_ptr(),
                *block,
                *shared,
                values.as_mut_ptr(),
                arguments.len() as c_uint,
                order,
            )
        })
    }

    /// Fails unless the sources have this kernel.
    fn find(&self, kernel: &'static str) -> Result<()> {
        let nothing =
            Launch { kernel, grid: (0, 0, 0), block: 0, shared: 0, arguments: Arguments::default() };
        // No kernel is without arguments, so one that is there refuses.
        match self.run(&nothing)? {
            1 => Err(failed(format!("no kernel {kernel}"))),
            _ => Ok(()),
        }
    }

    fn replay(&self, work: &[Work]) -> Result<()> {
        work.iter().try_for_each(|work| match work {
            Work::Launch(launch) => self.launch(launch),
            &Work::Copy { from, to, bytes } => self.copy(from, to, bytes),
            &Work::Gemm(shape, places) => self.gemm(shape, places),
        })
    }

    fn not_recording(&self, call: &str) -> Result<()> {
        match &*lock(&self.recording) {
            Some(_) => Err(failed(format!("{call}: not while capturing"))),
            None => Ok(()),
        }
    }

    fn inside(&self, address: u64, bytes: usize) -> Result<()> {
        let inside = |(&start, allocation): (&u64, &Allocation)| {
            start <= address && address + bytes as u64 <= start + allocation.bytes as u64
        };
        match lock(&self.memory).iter().any(inside) {
            true => Ok(()),
            false => Err(failed(format!("{bytes} bytes at {address:#x} are nobody's"))),
        }
    }
}

/// The device that [`open`] opens.
#[derive(Debug)]
struct Emulated(Arc<Emulator>);

impl Backend for Emulated {
    fn name(&self) -> &str {
        "the CPU in place of a GPU"
    }

    fn multiprocessors(&self) -> usize {
        4
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let used: usize = lock(&self.0.memory).values().map(|allocation| allocation.bytes).sum();
        Ok((usize::MAX - used, usize::MAX))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.0.not_recording("allocate")?;
        let cells = vec![u128::MAX; (bytes + 2 * GUARD + 256).div_ceil(16)];
        let address = (cells.as_ptr() as u64 + GUARD as u64).next_multiple_of(256);
        lock(&self.0.memory).insert(address, Allocation { cells, bytes });
        Ok(address)
    }

    fn free(&self, address: u64) {
        lock(&self.0.memory).remove(&address);
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.0.not_recording("write")?;
        self.0.inside(address, bytes.len())?;
        // SAFETY: the address is in an allocation with that many bytes after it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.0.not_recording("read")?;
        self.wait()?;
        self.0.inside(address, bytes.len())?;
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Everything has run; what is left is to see whether it stayed in its memory.
    fn wait(&self) -> Result<()> {
        self.0.not_recording("wait")?;
        for (&address, Allocation { cells, bytes }) in &*lock(&self.0.memory) {
            let start = cells.as_ptr() as u64;
            let all = bytes_of_cells(cells);
            let first = (address - start) as usize;
            let (before, behind) = (&all[..first], &all[first + bytes..]);
            if !before.iter().chain(behind).all(|&byte| byte == NAN) {
                return Err(failed(format!("a kernel wrote beside an allocation of {bytes} bytes")));
            }
        }
        Ok(())
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        self.0.not_recording("capture")?;
        *lock(&self.0.recording) = Some(Vec::new());
        let done = work();
        let recorded = lock(&self.0.recording).take().unwrap_or_default();
        done?;
        Ok(Box::new(Recorded { emulator: Arc::clone(&self.0), work: recorded }))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.0.copy(from, to, bytes)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.0.launch(launch)
    }

    fn gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        self.0.gemm(shape, places)
    }
}

/// Recorded work.
struct Recorded {
    emulator: Arc<Emulator>,
    work: Vec<Work>,
}

impl Recording for Recorded {
    fn launch(&self) -> Result<()> {
        self.emulator.replay(&self.work)
    }
}

/// `out = input weight^T + bias`, a row at a time.
fn multiply<T: Float>(shape: GemmShape, places: GemmPlaces) {
    let GemmShape { m, n, k, with_bias, .. } = shape;
    let read = |address: u64, len: usize| -> Vec<f32> {
        // SAFETY: launchers pass addresses of slices that have as many elements.
        unsafe { std::slice::from_raw_parts(address as *const T, len) }.iter().map(|x| x.to_f32()).collect()
    };
    let (input, weight) = (read(places.input, m * k), read(places.weight, n * k));
    let bias = if with_bias { read(places.bias, n) } else { vec![0.0; n] };
    // SAFETY: as above; the factors were copied, so nothing else refers to this memory.
    let out = unsafe { std::slice::from_raw_parts_mut(places.out as *mut T, m * n) };
    out.par_chunks_exact_mut(n).zip(input.par_chunks_exact(k)).for_each(|(out, input)| {
        for ((out, weight), bias) in out.iter_mut().zip(weight.chunks_exact(k)).zip(&bias) {
            // Eight sums side by side, for speed.
            let mut sums = [0f32; 8];
            for (input, weight) in input.chunks(8).zip(weight.chunks(8)) {
                input.iter().zip(weight).zip(&mut sums).for_each(|((x, w), sum)| *sum += x * w);
            }
            *out = T::from_f32(sums.iter().sum::<f32>() + bias);
        }
    });
}

fn bytes_of_cells(cells: &[u128]) -> &[u8] {
    // SAFETY: the same memory, as bytes.
    unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), size_of_val(cells)) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(error: impl std::fmt::Display) -> CudaError {
    CudaError::Emulation { got: error.to_string() }
}

/// The compiled kernels.
pub(super) fn library() -> Result<PathBuf> {
    compile("emulate.cpp", "ddt-cuda-emulation", &["-Wno-unknown-pragmas".into()])
}

/// [`compiler::compile`], with this module's errors.
pub(super) fn compile(source: &str, name: &str, flags: &[OsString]) -> Result<PathBuf> {
    compiler::compile(source, name, flags).map_err(|error| match error {
        compiler::Failed::NoCompiler => CudaError::NoCompiler,
        compiler::Failed::Said(got) => CudaError::Emulation { got },
    })
}
