//! Convolutions by NVIDIA's cuDNN, where its library is.
#![expect(unsafe_code, reason = "the library takes handles and addresses; here is where they are owned")]

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use cudarc::cudnn::result::{self, CudnnError};
use cudarc::cudnn::sys;
use cudarc::driver::CudaStream;

use super::backend::ConvShape;
use super::error::{CudaError, Result};

/// How many ways of convolving are asked for.
const WAYS: usize = 8;

/// The versions that have the calls made here; others are taken for absent.
const VERSIONS: std::ops::Range<usize> = 90_000..100_000;

/// Set to 0, it leaves the library out: one of whose files some are missing ends the whole program.
const SWITCH: &str = "DDT_CUDNN";

/// The library, and what was found out about each shape.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    /// `None` where it makes no plan.
    plans: HashMap<ConvShape, Option<Plan>>,
}

// SAFETY: handles and descriptors may be used from any thread, one at a time: the owner holds a lock.
unsafe impl Send for Cudnn {}

/// How a shape is convolved. Descriptors that were not made yet are null.
struct Plan {
    input: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    window: sys::cudnnConvolutionDescriptor_t,
    out: sys::cudnnTensorDescriptor_t,
    /// Best first; what the library refuses to run goes.
    ways: VecDeque<Way>,
}

#[derive(Clone, Copy)]
struct Way {
    algorithm: sys::cudnnConvolutionFwdAlgo_t,
    math: sys::cudnnMathType_t,
    scratch: usize,
}

impl Drop for Plan {
    fn drop(&mut self) {
        for tensor in [self.input, self.out] {
            if !tensor.is_null() {
                // SAFETY: made in `Plan::new`, destroyed once. Nobody could act on an error.
                let _ = unsafe { result::destroy_tensor_descriptor(tensor) };
            }
        }
        if !self.weight.is_null() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_filter_descriptor(self.weight) };
        }
        if !self.window.is_null() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_convolution_descriptor(self.window) };
        }
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made in `Cudnn::new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Cudnn {
    /// `None` where the library is not, is too old, or does not start. The device's context must be current.
    pub(super) fn new(stream: &CudaStream) -> Option<Self> {
        if std::env::var(SWITCH).is_ok_and(|it| it == "0") {
            return None;
        }
        // SAFETY: it opens a library by NVIDIA's names and closes it again.
        #[cfg(not(feature = "candle-cuda"))]
        let there = unsafe { sys::is_culib_present() };
        // The program is linked with it.
        #[cfg(feature = "candle-cuda")]
        let there = true;
        if !there || !VERSIONS.contains(&result::get_version()) {
            return None;
        }
        let it = Self { handle: result::create_handle().ok()?, plans: HashMap::new() };
        // SAFETY: both are alive.
        unsafe { result::set_stream(it.handle, stream.cu_stream().cast()) }.ok()?;
        Some(it)
    }

    pub(super) fn version(&self) -> usize {
        result::get_version()
    }

    /// Whether it did it; addresses of input, weight and result.
    pub(super) fn conv(&mut self, shape: ConvShape, places: [u64; 3], scratch: u64) -> Result<bool> {
        let handle = self.handle;
        // The library reports an unsupported shape when it is asked for a plan.
        let plan = self.plans.entry(shape).or_insert_with(|| Plan::new(handle, shape).ok());
        let Some(plan) = plan else { return Ok(false) };
        while let Some(&way) = plan.ways.front() {
            match plan.run(handle, way, places, scratch) {
                Ok(()) => return Ok(true),
                // Not this way, whatever it has promised.
                Err(error) if refused(error) => plan.ways.pop_front(),
                Err(CudnnError(status)) => {
                    let status = format!("{status:?}");
                    return Err(CudaError::Library { library: "cuDNN", call: "convolve", status });
                }
            };
        }
        Ok(false)
    }
}

/// Whether nothing was started: statuses of 3000 and above are what is not supported, of 4000 and above what went
/// wrong inside the library, and of 5000 and above what went wrong on the GPU.
fn refused(CudnnError(status): CudnnError) -> bool {
    (3000..5000).contains(&(status as u32))
}

impl Plan {
    /// All ways whose scratch memory suffices.
    fn new(handle: sys::cudnnHandle_t, shape: ConvShape) -> std::result::Result<Self, CudnnError> {
        let ConvShape { images, image, result: sides, channels, out_channels, window, element, scratch } =
            shape;
        use std::ptr::null_mut;
        // Owns what has been made so far, whatever fails next.
        let mut plan = Self {
            input: null_mut(),
            weight: null_mut(),
            window: null_mut(),
            out: null_mut(),
            ways: VecDeque::new(),
        };
        // The library refuses sizes that are too large.
        let int = |it: usize| c_int::try_from(it).unwrap_or(c_int::MAX);
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let bf16 = element == 0;
        let element = if bf16 {
            sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16
        } else {
            sys::cudnnDataType_t::CUDNN_DATA_FLOAT
        };
        let sizes = [images, channels, image.0, image.1].map(int);
        plan.input = result::create_tensor_descriptor()?;
        // SAFETY: the descriptor was just made.
        unsafe { result::set_tensor4d_descriptor(plan.input, format, element, sizes) }?;
        plan.out = result::create_tensor_descriptor()?;
        let sizes = [images, out_channels, sides.0, sides.1].map(int);
        // SAFETY: the descriptor was just made.
        unsafe { result::set_tensor4d_descriptor(plan.out, format, element, sizes) }?;
        plan.weight = result::create_filter_descriptor()?;
        let sizes = [out_channels, channels, window.height, window.width].map(int);
        // SAFETY: the descriptor was just made.
        unsafe { result::set_filter4d_descriptor(plan.weight, element, format, sizes) }?;
        plan.window = result::create_convolution_descriptor()?;
        // SAFETY: the descriptor was just made.
        unsafe {
            result::set_convolution2d_descriptor(
                plan.window,
                int(window.pad_rows),
                int(window.pad_columns),
                int(window.stride),
                int(window.stride),
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
        }?;
        // f32 factors are not rounded to TF32.
        let math = if bf16 {
            sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH
        } else {
            sys::cudnnMathType_t::CUDNN_FMA_MATH
        };
        // SAFETY: the descriptor was just made.
        unsafe { result::set_convolution_math_type(plan.window, math) }?;

        let mut found = [const { MaybeUninit::<sys::cudnnConvolutionFwdAlgoPerf_t>::uninit() }; WAYS];
        let mut count = 0;
        // SAFETY: all descriptors are alive; `found` has room for as many results as are asked for.
        unsafe {
            result::get_convolution_forward_algorithm(
                handle,
                plan.input,
                plan.weight,
                plan.window,
                plan.out,
                WAYS as c_int,
                &raw mut count,
                found.as_mut_ptr().cast(),
            )
        }?;
        let count = usize::try_from(count).unwrap_or(0).min(WAYS);
        // SAFETY: the library has written `count` results.
        let found = found[..count].iter().map(|way| unsafe { way.assume_init_ref() });
        // Best first. Other math than was asked for would round f32 factors, and ways by transforms (Winograd's, FFT)
        // round more than the sums themselves.
        let exact = |way: &&sys::cudnnConvolutionFwdAlgoPerf_t| {
            use sys::cudnnConvolutionFwdAlgo_t as Way;
            let sums = [
                Way::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
                Way::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
            ];
            way.status.result().is_ok() && sums.contains(&way.algo) && (bf16 || way.mathType == math)
        };
        for way in found.filter(exact) {
            // SAFETY: the descriptor is alive.
            unsafe { result::set_convolution_math_type(plan.window, way.mathType) }?;
            // SAFETY: all descriptors are alive.
            let needed = unsafe {
                result::get_convolution_forward_workspace_size(
                    handle,
                    plan.input,
                    plan.weight,
                    plan.window,
                    plan.out,
                    way.algo,
                )
            };
            if let Ok(needed) = needed
                && needed <= scratch
            {
                plan.ways.push_back(Way { algorithm: way.algo, math: way.mathType, scratch: needed });
            }
        }
        Ok(plan)
    }

    fn run(
        &self,
        handle: sys::cudnnHandle_t,
        way: Way,
        [input, weight, out]: [u64; 3],
        scratch: u64,
    ) -> std::result::Result<(), CudnnError> {
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the descriptor is alive.
        unsafe { result::set_convolution_math_type(self.window, way.math) }?;
        // SAFETY: the addresses are those of slices that were measured against the shape; descriptors are alive
        // and of that shape; the scratch memory is as large as was promised when the way was chosen; `one` and
        // `zero` are read before the call returns.
        unsafe {
            result::convolution_forward(
                handle,
                (&raw const one).cast(),
                self.input,
                input as *const c_void,
                self.weight,
                weight as *const c_void,
                self.window,
                way.algorithm,
                scratch as *mut c_void,
                way.scratch,
                (&raw const zero).cast(),
                self.out,
                out as *mut c_void,
            )
        }
    }
}
