//! A GPU, through NVIDIA's driver.
#![expect(unsafe_code, reason = "the driver takes addresses; here is where they are checked or owned")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result, sys};

#[cfg(feature = "cuda")]
use super::backend::ConvShape;
use super::backend::{Backend, GemmPlaces, GemmShape, Recording};
use super::blas::Blas;
#[cfg(feature = "cuda")]
use super::cudnn::Cudnn;
use super::device::Cuda;
use super::error::{CudaError, Result};
use super::kernels;
use super::launch::Launch;
use super::memory::Device;
use super::turn::{Held, Turn};

/// Machine code for compute capability 8.0 and 9.0.
static FATBIN: &Fatbin<[u8]> = &Fatbin(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// Portable code, which a driver compiles: for those that are older than the toolkit, and devices that are newer. Text that
/// ends with a zero.
static PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// The oldest driver that has every call made here: of CUDA 12.0.
const OLDEST: i32 = 12_000;

/// The driver reads the image's header as words.
#[repr(align(16))]
struct Fatbin<B: ?Sized>(B);

struct Driver {
    // Both dropped before the context, which `stream` keeps.
    blas: Mutex<Option<Blas>>,
    /// Looked for once, when it is first needed.
    #[cfg(feature = "cuda")]
    cudnn: Mutex<Option<Option<Cudnn>>>,
    module: Module,
    functions: HashMap<&'static str, sys::CUfunction>,
    stream: Arc<CudaStream>,
    /// Held by the thread that uses the stream.
    turn: Arc<Turn>,
    name: String,
    multiprocessors: usize,
}

// SAFETY: context, module and function handles may be used from any thread; every call here makes the
// context current on its thread first.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver synchronises calls on one stream.
unsafe impl Sync for Driver {}

impl Drop for Driver {
    fn drop(&mut self) {
        // The libraries' handles, which are dropped next, belong to the context; it must be current on this thread.
        let _ = self.bind();
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Driver({})", self.name)
    }
}

struct Module {
    handle: sys::CUmodule,
    context: Arc<CudaContext>,
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the handle came from a successful load, is unloaded once, and no launch can follow:
            // functions are reached through the driver that owns this module.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

impl Cuda {
    /// Opens device `ordinal`, from 0, and loads the kernels.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] where there is none; if there is no such device, it is older than compute capability
    /// 8.0, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Self> {
        Ok(Self { device: Device::new(Driver::open(ordinal)?) })
    }

    /// The kernels on another's stream: work is put on it between that of its owner.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn on(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self { device: Device::new(Driver::on(stream)?) })
    }
}

/// Names the call that failed.
fn check<T>(call: &'static str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
    outcome.map_err(|error| {
        let name = words(error, error.error_name());
        CudaError::Driver { call, name, text: error_text(error) }
    })
}

fn error_text(error: DriverError) -> String {
    words(error, error.error_string())
}

/// The driver's words for an error, or its number.
fn words(error: DriverError, words: std::result::Result<&std::ffi::CStr, DriverError>) -> String {
    words.map_or_else(|_| format!("error {}", error.0 as u32), |it| it.to_string_lossy().into_owned())
}

impl Driver {
    fn open(ordinal: usize) -> Result<Self> {
        if !is_there() {
            return Err(CudaError::NoDriver);
        }
        // Before any other call: an older driver may lack it.
        supported_version()?;
        let count = match result::init().and_then(|()| CudaContext::device_count()) {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
            outcome => usize::try_from(check("count devices", outcome)?).unwrap_or(0),
        };
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let context = check("open the device", CudaContext::new(ordinal))?;
        // SAFETY: this context's memory is used only here, on one stream; cudarc's events, which order
        // streams, would break capturing.
        unsafe { context.disable_event_tracking() };
        // Not the default stream, which cannot be captured.
        let stream = check("make a stream", context.new_stream())?;
        Self::on(stream)
    }

    /// On a stream of the caller's, whose context has the kernels loaded into it.
    fn on(stream: Arc<CudaStream>) -> Result<Self> {
        let context = Arc::clone(stream.context());
        let version = supported_version()?;
        let (major, minor) = check("ask for the compute capability", context.compute_capability())?;
        if major < 8 {
            return Err(CudaError::TooOld { major, minor });
        }
        let name = check("ask for the name", context.name())?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = check("ask for multiprocessors", context.attribute(attribute))?;
        let module = load(&context, version)?;
        let functions = functions(&module)?;
        let multiprocessors = usize::try_from(multiprocessors).unwrap_or(1);
        Ok(Self {
            blas: Mutex::default(),
            #[cfg(feature = "cuda")]
            cudnn: Mutex::default(),
            module,
            functions,
            stream,
            turn: Arc::default(),
            name,
            multiprocessors,
        })
    }

    /// The library is started when it is first needed.
    fn with_blas(&self, work: impl FnOnce(&mut Blas) -> Result<()>) -> Result<()> {
        let _turn = self.turn()?;
        let mut blas = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *blas {
            Some(blas) => work(blas),
            none => work(none.insert(Blas::new(&self.name)?)),
        }
    }

    #[cfg(feature = "cuda")]
    fn with_cudnn<R>(&self, work: impl FnOnce(&mut Cudnn) -> R) -> Option<R> {
        let mut cudnn = self.cudnn.lock().unwrap_or_else(PoisonError::into_inner);
        cudnn.get_or_insert_with(|| Cudnn::new(&self.stream)).as_mut().map(work)
    }

    fn bind(&self) -> Result<()> {
        check("use the device", self.module.context.bind_to_thread())
    }

    /// The stream for this thread alone, and the device's context.
    fn turn(&self) -> Result<Held<'_>> {
        let held = self.turn.take();
        self.bind()?;
        Ok(held)
    }
}

impl Backend for Driver {
    fn name(&self) -> &str {
        &self.name
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn is_emulated(&self) -> bool {
        false
    }

    fn memory(&self) -> Result<(usize, usize)> {
        check("ask for free memory", self.module.context.mem_get_info())
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: any size may be asked for; the address goes into a `Memory`, which frees it once.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory()?;
                Err(CudaError::OutOfMemory { asked: bytes, free, total })
            }
            outcome => check("allocate", outcome),
        }
    }

    fn free(&self, address: u64) {
        if self.bind().is_ok() {
            // SAFETY: the address came from `alloc` and its owner is being dropped. Freeing waits for
            // kernels that may still use it. Nobody could act on an error.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let _turn = self.turn()?;
        // SAFETY: the caller has checked that a slice of this length is at the address; `bytes` outlive
        // the copy because of the wait.
        check("write", unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) })?;
        self.wait()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let _turn = self.turn()?;
        // SAFETY: as for `write`.
        check("read", unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.cu_stream()) })?;
        self.wait()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let _turn = self.turn()?;
        // SAFETY: the caller has checked that slices of this many bytes are at both addresses.
        check("copy", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) })
    }

    fn wait(&self) -> Result<()> {
        let _turn = self.turn()?;
        check("wait for the stream", self.stream.synchronize())
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let _turn = self.turn()?;
        let timed = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = check("record an event", self.stream.record_event(Some(timed)))?;
        work()?;
        let end = check("record an event", self.stream.record_event(Some(timed)))?;
        check("time", end.synchronize())?;
        let mut milliseconds = 0f32;
        check("time", elapsed(&start, &end, &mut milliseconds))?;
        Ok(f64::from(milliseconds))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let Some(&function) = self.functions.get(launch.kernel) else {
            return check(launch.kernel, Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)));
        };
        let _turn = self.turn()?;
        let mut pointers = launch.arguments.pointers();
        let (block, stream) = ((launch.block, 1, 1), self.stream.cu_stream());
        // SAFETY: the function is of a loaded module; launchers give it the arguments its source declares
        // (a test runs each of them against the compiled sources) and slices that they have measured. The
        // driver copies the arguments before it returns.
        let outcome = unsafe {
            result::launch_kernel(function, launch.grid, block, launch.shared, stream, &mut pointers)
        };
        check(launch.kernel, outcome)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        let _turn = self.turn()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        check("begin capturing", self.stream.begin_capture(mode))?;
        let done = work();
        // Ended whatever happened: a stream left capturing refuses everything else.
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags);
        done?;
        let empty = DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let graph = check("end capturing", graph.and_then(|graph| graph.ok_or(empty)))?;
        // Else the first launch does it.
        check("upload a graph", graph.upload())?;
        Ok(Box::new(Captured { graph, turn: Arc::clone(&self.turn) }))
    }

    fn gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        self.with_blas(|blas| blas.gemm(shape, places, &self.stream))
    }

    fn tune_gemm(&self, shape: GemmShape, places: GemmPlaces) -> Result<()> {
        self.with_blas(|blas| blas.tune(shape, places, &self.stream, |work| self.time(work)))
    }

    fn ways(&self) -> Result<String> {
        let mut ways = String::new();
        self.with_blas(|blas| {
            ways = blas.ways();
            Ok(())
        })?;
        Ok(ways)
    }

    fn set_ways(&self, ways: &str) -> Result<()> {
        self.with_blas(|blas| {
            blas.set_ways(ways);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn conv(&self, shape: ConvShape, places: [u64; 3], scratch: u64) -> Result<bool> {
        let _turn = self.turn()?;
        self.with_cudnn(|cudnn| cudnn.conv(shape, places, scratch)).unwrap_or(Ok(false))
    }

    #[cfg(feature = "cuda")]
    fn cudnn_version(&self) -> Option<usize> {
        self.bind().ok()?;
        self.with_cudnn(|cudnn| cudnn.version())
    }
}

struct Captured {
    graph: CudaGraph,
    turn: Arc<Turn>,
}

// SAFETY: the driver's handles are valid in every thread of the process, and `launch` binds the context. The driver lets
// one thread at a time use a graph, which is what a type that is `Send` and not `Sync` promises.
unsafe impl Send for Captured {}

impl Recording for Captured {
    fn launch(&self) -> Result<()> {
        let _turn = self.turn.take();
        check("launch a graph", self.graph.launch())
    }
}

/// Milliseconds between two events that are past. `CudaEvent::elapsed_ms` asks for a function that drivers older than CUDA 12.8
/// lack; all have this one.
fn elapsed(
    start: &CudaEvent,
    end: &CudaEvent,
    milliseconds: &mut f32,
) -> std::result::Result<(), DriverError> {
    type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
    #[cfg(not(feature = "candle-cuda"))]
    let function: Elapsed = {
        // SAFETY: the function has had this signature since CUDA 2.
        let function = unsafe { sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0") };
        *function.map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?
    };
    #[cfg(feature = "candle-cuda")]
    let function: Elapsed = {
        // SAFETY: the function has had this signature since CUDA 2; the program is linked with the driver.
        unsafe extern "C" {
            fn cuEventElapsedTime(
                milliseconds: *mut f32,
                start: sys::CUevent,
                end: sys::CUevent,
            ) -> sys::CUresult;
        }
        cuEventElapsedTime
    };
    // SAFETY: both events are alive and of one context, and the driver writes one number.
    unsafe { function(milliseconds, start.cu_event(), end.cu_event()) }.result()
}

/// Whether the driver's library is there. Without it a program that is linked with it, for candle, does not start.
fn is_there() -> bool {
    #[cfg(not(feature = "candle-cuda"))]
    {
        // SAFETY: it opens a library by NVIDIA's names and closes it again; its initialisers are the driver's.
        unsafe { sys::is_culib_present() }
    }
    #[cfg(feature = "candle-cuda")]
    true
}

/// The version of CUDA that the driver serves, 12040 is 12.4, if it is new enough.
fn supported_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the library is there, and writes one number.
    check("ask for the version", unsafe { sys::cuDriverGetVersion(&raw mut version) }.result())?;
    if version < OLDEST {
        return Err(CudaError::OldDriver { version: shown(version) });
    }
    Ok(version)
}

fn shown(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn load(context: &Arc<CudaContext>, version: i32) -> Result<Module> {
    use sys::CUresult as Refused;
    check("use the device", context.bind_to_thread())?;
    // SAFETY: the image is a whole fatbin made by nvcc, aligned, and lives as long as the program.
    let loaded = unsafe { result::module::load_data(FATBIN.0.as_ptr().cast()) };
    let handle = match loaded {
        Err(DriverError(
            Refused::CUDA_ERROR_INVALID_IMAGE
            | Refused::CUDA_ERROR_NO_BINARY_FOR_GPU
            | Refused::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        )) => {
            // SAFETY: text that ends with a zero, and lives as long as the program.
            let compiled = unsafe { result::module::load_data(PTX.as_ptr().cast()) };
            compiled.map_err(|error| CudaError::Kernels {
                driver: shown(version),
                ptx: after(".version "),
                toolkit: after("release "),
                text: error_text(error),
            })?
        }
        other => check("load the kernels", other)?,
    };
    Ok(Module { handle, context: Arc::clone(context) })
}

/// The version that the PTX states after these words.
fn after(words: &str) -> String {
    let rest = PTX.split_once(words).map_or("", |it| it.1);
    rest.split(|it: char| it == ',' || it.is_whitespace()).next().unwrap_or_default().to_owned()
}

fn functions(module: &Module) -> Result<HashMap<&'static str, sys::CUfunction>> {
    let mut functions = HashMap::new();
    for name in kernels::names() {
        let c_name = std::ffi::CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded.
        let function = check(name, unsafe { result::module::get_function(module.handle, c_name) })?;
        let shared = kernels::most_shared(name);
        if shared > 0 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of the loaded module; the driver refuses what the device lacks.
            check(name, unsafe { result::function::set_function_attribute(function, attribute, shared) })?;
        }
        functions.insert(name, function);
    }
    Ok(functions)
}
