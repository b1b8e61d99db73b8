//! GEMM by NVIDIA's cuBLASLt.
#![expect(unsafe_code, reason = "the library takes handles and addresses; here is where they are owned")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;

use super::backend::{GemmPlaces, GemmShape};
use super::error::{CudaError, Result};
use super::tuning::Tuning;

const LIBRARY: &str = "cuBLASLt";

/// How many ways of multiplying are asked for.
const WAYS: usize = 16;
/// Runs of each way when it is timed.
const RUNS: usize = 5;
/// `CUBLAS_OP_T` of cublas_api.h.
const TRANSPOSED: i32 = 1;
/// Alignment of slices, in bytes.
const ALIGNMENT: u32 = 16;

/// The library, and what was found out about each shape.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<GemmShape, Plan>,
    /// None where nothing is timed or known.
    tuning: Option<Tuning>,
    /// Whether shapes without a way are timed.
    measures: bool,
}

// SAFETY: handles and descriptors may be used from any thread, one at a time: the owner holds a lock.
unsafe impl Send for Blas {}

/// How a shape is multiplied.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    /// The way that is used.
    way: sys::cublasLtMatmulAlgo_t,
    /// All that the library names, the one it thinks best first.
    ways: Vec<sys::cublasLtMatmulAlgo_t>,
    /// Whether the way was found to be the fastest.
    tuned: bool,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `Plan::new`, destroyed once. Nobody could act on an error.
        let _ = unsafe { result::destroy_matmul_desc(self.product) };
        for layout in [self.weight, self.input, self.out] {
            if !layout.is_null() {
                // SAFETY: as above.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made in `Blas::new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn check<T>(call: &'static str, outcome: std::result::Result<T, CublasError>) -> Result<T> {
    outcome.map_err(|error| CudaError::Library { library: LIBRARY, call, status: format!("{:?}", error.0) })
}

impl Blas {
    /// The device's context must be current.
    pub(super) fn new(device: &str) -> Result<Self> {
        #[cfg(not(feature = "candle-cuda"))]
        {
            // SAFETY: it opens a library by NVIDIA's names and closes it again.
            if !unsafe { sys::is_culib_present() } {
                return Err(CudaError::NoCublas);
            }
        }
        let handle = check("start cuBLASLt", result::create_handle())?;
        // SAFETY: the library is there; the call has no arguments.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, plans: HashMap::new(), tuning: Tuning::of(device, version), measures: true })
    }

    pub(super) fn gemm(&mut self, shape: GemmShape, places: GemmPlaces, stream: &CudaStream) -> Result<()> {
        let handle = self.handle;
        let plan = self.plan(shape, places)?;
        let way = plan.way;
        plan.run(handle, &way, (shape, places), stream)
    }

    /// Keeps the way for which `time` of a few runs is the least, unless it is known; runs the product.
    pub(super) fn tune(
        &mut self,
        shape: GemmShape,
        places: GemmPlaces,
        stream: &CudaStream,
        time: impl Fn(&mut dyn FnMut() -> Result<()>) -> Result<f64>,
    ) -> Result<()> {
        let handle = self.handle;
        self.plan(shape, places)?;
        let plan = self.plans.get_mut(&shape).filter(|it| !it.tuned && self.measures);
        let (Some(plan), Some(tuning)) = (plan, &mut self.tuning) else {
            return self.gemm(shape, places, stream);
        };
        let mut best = f64::INFINITY;
        for way in plan.ways.clone() {
            // The library may refuse to run a way that it named.
            if plan.run(handle, &way, (shape, places), stream).is_err() {
                continue;
            }
            let took =
                time(&mut || (0..RUNS).try_for_each(|_| plan.run(handle, &way, (shape, places), stream)))?;
            if took < best {
                (best, plan.way) = (took, way);
            }
        }
        let takes = |data| plan.takes(handle, &sys::cublasLtMatmulAlgo_t { data }, shape.workspace);
        let data = tuning.keep(shape, plan.way.data, takes);
        (plan.way, plan.tuned) = (sys::cublasLtMatmulAlgo_t { data }, true);
        Ok(())
    }

    /// The ways that are known, as text.
    pub(super) fn ways(&self) -> String {
        self.tuning.as_ref().map(Tuning::text).unwrap_or_default()
    }

    /// Multiplies in these ways, and measures no others.
    pub(super) fn set_ways(&mut self, ways: &str) {
        self.plans.clear();
        (self.tuning, self.measures) = (Some(Tuning::of_text(ways)), false);
    }

    fn plan(&mut self, shape: GemmShape, places: GemmPlaces) -> Result<&mut Plan> {
        Ok(match self.plans.entry(shape) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(empty) => {
                let mut plan = Plan::new(self.handle, shape, places)?;
                let known = self
                    .tuning
                    .as_ref()
                    .and_then(|it| it.get(&shape))
                    .map(|data| sys::cublasLtMatmulAlgo_t { data });
                if let Some(way) = known.filter(|it| plan.takes(self.handle, it, shape.workspace)) {
                    (plan.way, plan.tuned) = (way, true);
                }
                empty.insert(plan)
            }
        })
    }
}

impl Plan {
    /// The library's matrices are column-major, so its result is out^T = weight input^T: (n, m), from a
    /// transposed (k, n) and a (k, m).
    fn new(handle: sys::cublasLtHandle_t, shape: GemmShape, places: GemmPlaces) -> Result<Self> {
        let GemmShape { m, n, k, with_bias, element, workspace } = shape;
        let element = [sys::cudaDataType_t::CUDA_R_16BF, sys::cudaDataType_t::CUDA_R_32F][element];
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product =
            check("plan a product", result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F))?;
        let null = std::ptr::null_mut();
        // Owns what has been made so far, whatever fails next.
        let none = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        let mut plan =
            Self { product, weight: null, input: null, out: null, way: none, ways: Vec::new(), tuned: false };
        let layout = |rows: usize, columns: usize| {
            check(
                "plan a product",
                result::create_matrix_layout(element, rows as u64, columns as u64, rows as i64),
            )
        };
        plan.weight = layout(k, n)?;
        plan.input = layout(k, m)?;
        plan.out = layout(n, m)?;
        plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if with_bias {
            let bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &bias)?;
            plan.set_bias(places)?;
        }
        plan.ways = plan.ways_for(handle, workspace as u64)?;
        plan.way = *plan.ways.first().ok_or_else(|| CudaError::Library {
            library: LIBRARY,
            call: "plan a product",
            status: format!("that it knows no way to multiply {shape:?}"),
        })?;
        Ok(plan)
    }

    /// Whether the library can multiply this way.
    fn takes(
        &self,
        handle: sys::cublasLtHandle_t,
        way: &sys::cublasLtMatmulAlgo_t,
        workspace: usize,
    ) -> bool {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are alive; the library reads the way and writes one result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                self.product,
                self.weight,
                self.input,
                self.out,
                self.out,
                way,
                found.as_mut_ptr(),
            )
        };
        // SAFETY: written, or zero, which is a value.
        let found = unsafe { found.assume_init() };
        status.result().is_ok() && found.state.result().is_ok() && found.workspaceSize <= workspace
    }

    fn set_bias(&self, places: GemmPlaces) -> Result<()> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &places.bias)
    }

    fn set<V>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &V) -> Result<()> {
        let value: *const V = value;
        // SAFETY: the descriptor is alive, and the value is read before the call returns.
        let outcome = unsafe {
            result::set_matmul_desc_attribute(self.product, attribute, value.cast(), size_of::<V>())
        };
        check("plan a product", outcome)
    }

    fn ways_for(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace: u64,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let wishes = check("plan a product", result::create_matmul_pref())?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: `wishes` is alive, and the value is read before the call returns.
            check("plan a product", unsafe {
                result::set_matmul_pref_attribute(wishes, attribute, value, size)
            })
        };
        let most: *const u64 = &workspace;
        // Parts of a depth are summed in f32, never in the result's type.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let alignment: *const u32 = &ALIGNMENT;
        let outcome = set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, most.cast(), 8)
            .and_then(|()| {
                let mask = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
                set(mask, (&raw const reduction).cast(), 4)
            })
            .and_then(|()| {
                [
                    Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                    Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                    Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                    Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                ]
                .into_iter()
                .try_for_each(|attribute| set(attribute, alignment.cast(), 4))
            })
            .and_then(|()| {
                let mut found =
                    [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; WAYS];
                let mut count = 0;
                // SAFETY: all descriptors are alive; `found` has room for as many results as are asked for.
                let status = unsafe {
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        handle,
                        self.product,
                        self.weight,
                        self.input,
                        self.out,
                        self.out,
                        wishes,
                        WAYS as i32,
                        found.as_mut_ptr().cast(),
                        &raw mut count,
                    )
                };
                check("plan a product", status.result())?;
                let count = usize::try_from(count).unwrap_or(0).min(WAYS);
                // SAFETY: the library has written `count` results.
                let found = found[..count].iter().map(|way| unsafe { way.assume_init_ref() });
                let works = |way: &&sys::cublasLtMatmulHeuristicResult_t| way.state.result().is_ok();
                Ok(found.filter(works).map(|way| way.algo).collect())
            });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(wishes) };
        outcome
    }

    fn run(
        &self,
        handle: sys::cublasLtHandle_t,
        way: &sys::cublasLtMatmulAlgo_t,
        (shape, places): (GemmShape, GemmPlaces),
        stream: &CudaStream,
    ) -> Result<()> {
        if shape.with_bias {
            self.set_bias(places)?;
        }
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the addresses are those of slices that were measured against the shape; descriptors are
        // alive and of that shape; `one` and `zero` are read before the call returns.
        check("multiply", unsafe {
            result::matmul(
                handle,
                self.product,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                places.weight as *const c_void,
                self.weight,
                places.input as *const c_void,
                self.input,
                places.out as *const c_void,
                self.out,
                places.out as *mut c_void,
                self.out,
                way,
                places.workspace as *mut c_void,
                shape.workspace,
                stream.cu_stream().cast(),
            )
        })
    }
}
