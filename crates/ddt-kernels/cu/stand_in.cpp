// A driver (libcuda) and cuBLASLt without a GPU: kernels are run by the emulation, and what a driver would refuse is refused.
//
// Work waits in its stream until something waits for the stream. A process has two devices, or as many as DEVICES says.
// CUDA_VERSION is the version that the driver serves: below 13.0 it refuses machine code made by newer toolkits, and below
// 12.8 it lacks what came later. Memory that is freed is filled with NaN and, if it is small, not used again.
// Structures and numbers are those of cuda.h and cublasLt.h.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#ifndef CUDA_VERSION
#define CUDA_VERSION 13000
#endif
#ifndef DEVICES
#define DEVICES 2
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of the emulation, which this is linked with.
extern "C" int ddt_emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared_bytes, void **arguments,
                           unsigned count, int backwards);
extern "C" int ddt_emulated_arguments(const char *name);

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

const char *name_of(int result) {
    switch (result) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
    case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
    case UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case NOT_READY: return "CUDA_ERROR_NOT_READY";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    }
    return "CUDA_ERROR_UNKNOWN";
}

using Work = std::function<int()>;

struct Context {
    int device;
};

struct Stream {
    Context *context;
    std::vector<Work> waiting;
    bool capturing = false, invalidated = false;
    std::thread::id capturer;
};

struct Graph {
    std::vector<Work> work;
};

struct Event {
    bool timed, past = false;
    double milliseconds = 0;
    Stream *stream = nullptr;
};

// Bounds of a kernel, as the compiler states them.
struct Bounds {
    unsigned threads, parameters;
};

struct Module {
    Context *context;
    // Empty for machine code, which is not read.
    std::map<std::string, Bounds> kernels;
};

struct Function {
    Module *module;
    std::string name;
    unsigned shared_bytes = 48 * 1024;
};

struct Allocation {
    size_t bytes;
    int device;
};

constexpr size_t DEVICE_BYTES = size_t(80) << 30;
// Freed memory of at most this many bytes stays, full of NaN, for whoever still uses it.
constexpr size_t SMALL = 1 << 20;

std::recursive_mutex mutex;
std::vector<Context> contexts(DEVICES);
std::vector<Stream *> streams;
std::map<uint64_t, Allocation> allocations;
// Once a kernel has failed, so does every call.
int failed = SUCCESS;
thread_local Context *current = nullptr;

// Counts, for tests; launches by kernel.
unsigned long products = 0, compiled_modules = 0;
std::map<std::string, unsigned long> launches;

struct Locked {
    std::lock_guard<std::recursive_mutex> guard{mutex};
};

int refuse(int result, const char *call, const char *why) {
    fprintf(stderr, "stand-in: %s: %s\n", call, why);
    return result;
}

// Every call but those that find devices needs a context on its thread.
#define CALL                                                                         \
    Locked locked;                                                                   \
    if (failed) return failed;                                                       \
    if (!current) return refuse(INVALID_CONTEXT, __func__, "no context on this thread")

bool inside(uint64_t address, size_t bytes) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    auto &[start, allocation] = *--after;
    return allocation.device == current->device && address + bytes <= start + allocation.bytes;
}

// A call that waits cannot be recorded, and ends a recording of the same thread.
int not_while_capturing(const char *call) {
    for (Stream *stream : streams) {
        if (stream->capturing && stream->capturer == std::this_thread::get_id()) {
            stream->invalidated = true;
            return refuse(CAPTURE_UNSUPPORTED, call, "this thread is capturing");
        }
    }
    return SUCCESS;
}

int finish(Stream *stream) {
    if (stream->capturing) {
        stream->invalidated = true;
        return refuse(CAPTURE_UNSUPPORTED, "wait", "the stream is capturing");
    }
    std::vector<Work> work;
    work.swap(stream->waiting);
    for (auto &one : work)
        if (int result = one()) return failed = result;
    return SUCCESS;
}

// The stream of a handle. 2 stands for a stream of the calling thread and the current context.
Stream *stream_of(void *handle) {
    static std::map<std::pair<std::thread::id, Context *>, Stream *> of_threads;
    if ((uint64_t)handle != 2) return (Stream *)handle;
    Stream *&stream = of_threads[{std::this_thread::get_id(), current}];
    if (!stream) {
        stream = new Stream;
        stream->context = current;
        streams.push_back(stream);
    }
    return stream;
}

int put(void *handle, const char *call, Work work) {
    Stream *stream = stream_of(handle);
    if (!stream) return refuse(INVALID_HANDLE, call, "the default stream is not used here");
    if (stream->context != current) return refuse(INVALID_HANDLE, call, "a stream of another context");
    stream->waiting.push_back(std::move(work));
    return SUCCESS;
}

double now() {
    auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}

// The kernels of PTX, with the bounds that it states.
std::map<std::string, Bounds> kernels_of(const std::string &ptx) {
    std::map<std::string, Bounds> kernels;
    const std::string word = ".entry ";
    for (size_t at = ptx.find(word); at != std::string::npos; at = ptx.find(word, at)) {
        at += word.size();
        size_t open = ptx.find('(', at), close = ptx.find(')', open), body = ptx.find('{', close);
        Bounds bounds{1024, 0};
        for (size_t it = ptx.find(".param", open); it < close; it = ptx.find(".param", it + 1)) bounds.parameters++;
        size_t most = ptx.find(".maxntid ", close);
        if (most < body) bounds.threads = (unsigned)atoi(ptx.c_str() + most + 9);
        kernels[ptx.substr(at, open - at)] = bounds;
    }
    return kernels;
}

// The types of operands, by cuBLAS's numbers.
constexpr int R_32F = 0, R_16F = 2, R_16BF = 14;

float value_of(int type, const void *array, size_t i) {
    if (type == R_16F) return (float)((const _Float16 *)array)[i];
    if (type == R_32F) return ((const float *)array)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)array)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void store(int type, void *array, size_t i, float value) {
    if (type == R_16F) {
        ((_Float16 *)array)[i] = (_Float16)value;
        return;
    }
    if (type == R_32F) {
        ((float *)array)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    // To the nearest, to even between two; NaN stays one.
    bool nan = value != value;
    ((uint16_t *)array)[i] = nan ? 0x7FFF : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Rows of a matrix as f32: `row` elements from one to the next, and `step` from one element to the next.
std::vector<float> rows_of(int type, const void *from, size_t rows, size_t depth, size_t row, size_t step) {
    std::vector<float> values(rows * depth);
    for (size_t j = 0; j < rows; j++)
        for (size_t k = 0; k < depth; k++) values[j * depth + k] = value_of(type, from, j * row + k * step);
    return values;
}

float dot(const float *x, const float *y, size_t depth) {
    // Eight sums side by side, for speed.
    float sums[8] = {};
    size_t k = 0;
    for (; k + 8 <= depth; k += 8)
        for (size_t lane = 0; lane < 8; lane++) sums[lane] += x[k + lane] * y[k + lane];
    for (; k < depth; k++) sums[0] += x[k] * y[k];
    float sum = 0;
    for (float part : sums) sum += part;
    return sum;
}

} // namespace

// --- The driver -------------------------------------------------------------------------------------------

EXPORT unsigned long ddt_stand_in_count(const char *what) {
    std::string name = what;
    if (name == "products") return products;
    if (name == "compiled modules") return compiled_modules;
    unsigned long count = 0;
    for (auto &[kernel, times] : launches)
        if (name == "launches" || kernel.compare(0, name.size(), name) == 0) count += times;
    return count;
}

EXPORT int cuInit(unsigned) { return DEVICES ? SUCCESS : NO_DEVICE; }

EXPORT int cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return SUCCESS;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 108; break; // multiprocessors
    case 75: *value = 8; break;   // compute capability
    case 76: *value = 0; break;
    default: *value = 1;
    }
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char *name, int length, int) {
    snprintf(name, (size_t)length, "Stand-in");
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    contexts[(size_t)device].device = device;
    *context = &contexts[(size_t)device];
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

EXPORT int cuCtxGetCurrent(void **context) {
    *context = current;
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void *context) {
    current = (Context *)context;
    return SUCCESS;
}

EXPORT int cuCtxSynchronize() {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    for (Stream *stream : streams)
        if (stream->context == current)
            if (int result = finish(stream)) return result;
    return SUCCESS;
}

EXPORT int cuStreamCreate(void **handle, unsigned flags) {
    CALL;
    if (flags != 1) return refuse(INVALID_VALUE, __func__, "a stream that waits for the default stream");
    auto *stream = new Stream;
    stream->context = current;
    streams.push_back(stream);
    *handle = stream;
    return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(void *handle) {
    CALL;
    int result = finish((Stream *)handle);
    for (auto &stream : streams)
        if (stream == handle) {
            stream = streams.back();
            streams.pop_back();
            break;
        }
    delete (Stream *)handle;
    return result;
}

EXPORT int cuStreamSynchronize(void *handle) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    return finish(stream_of(handle));
}

EXPORT int cuStreamWaitEvent(void *handle, void *event, unsigned) {
    CALL;
    auto *it = (Event *)event;
    return it->past || !it->stream || it->stream == stream_of(handle) ? SUCCESS : finish(it->stream);
}

EXPORT int cuStreamBeginCapture_v2(void *handle, int) {
    CALL;
    Stream *stream = stream_of(handle);
    if (stream->capturing) return refuse(INVALID_VALUE, __func__, "the stream is capturing already");
    // Earlier work is not part of the recording.
    if (int result = finish(stream)) return result;
    stream->capturing = true;
    stream->invalidated = false;
    stream->capturer = std::this_thread::get_id();
    return SUCCESS;
}

EXPORT int cuStreamEndCapture(void *handle, void **graph) {
    CALL;
    Stream *stream = stream_of(handle);
    if (!stream->capturing) return refuse(INVALID_VALUE, __func__, "the stream is not capturing");
    stream->capturing = false;
    std::vector<Work> work;
    work.swap(stream->waiting);
    *graph = stream->invalidated ? nullptr : new Graph{work};
    return stream->invalidated ? CAPTURE_INVALIDATED : SUCCESS;
}

EXPORT int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    CALL;
    *executable = new Graph(*(Graph *)graph);
    return SUCCESS;
}

EXPORT int cuGraphUpload(void *, void *) {
    CALL;
    return SUCCESS;
}

EXPORT int cuGraphLaunch(void *executable, void *stream) {
    CALL;
    for (auto &work : ((Graph *)executable)->work)
        if (int result = put(stream, __func__, work)) return result;
    return SUCCESS;
}

EXPORT int cuGraphDestroy(void *graph) {
    delete (Graph *)graph;
    return SUCCESS;
}

EXPORT int cuGraphExecDestroy(void *graph) { return cuGraphDestroy(graph); }

EXPORT int cuModuleLoadData(void **module, const void *image) {
    CALL;
    uint32_t magic;
    memcpy(&magic, image, 4);
    bool machine_code = magic == 0xBA55ED50;
    if (machine_code && CUDA_VERSION < 13000) return INVALID_IMAGE;
    auto *made = new Module{current, {}};
    if (!machine_code) {
        std::string ptx = (const char *)image;
        // PTX 7.8 came with CUDA 11.8, 8.x with 12.x.
        size_t stated = ptx.find(".version ");
        int major = 0, minor = 0;
        if (stated != std::string::npos) sscanf(ptx.c_str() + stated, ".version %d.%d", &major, &minor);
        int newest = (CUDA_VERSION / 1000 - 4) * 10 + CUDA_VERSION % 1000 / 10;
        if (!major || 10 * major + minor > newest) return UNSUPPORTED_PTX_VERSION;
        made->kernels = kernels_of(ptx);
        compiled_modules++;
    }
    *module = made;
    return SUCCESS;
}

EXPORT int cuModuleUnload(void *module) {
    CALL;
    delete (Module *)module;
    return SUCCESS;
}

EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
    CALL;
    auto *from = (Module *)module;
    if (from->context != current) return refuse(INVALID_HANDLE, __func__, "a module of another context");
    int arguments = ddt_emulated_arguments(name);
    if (arguments < 0) return refuse(NOT_FOUND, __func__, name);
    if (!from->kernels.empty()) {
        auto found = from->kernels.find(name);
        if (found == from->kernels.end()) return refuse(NOT_FOUND, __func__, name);
        if (found->second.parameters != (unsigned)arguments)
            return refuse(INVALID_IMAGE, name, "the two compilers see different parameters");
    }
    *function = new Function{from, name};
    return SUCCESS;
}

EXPORT int cuFuncSetAttribute(void *function, int attribute, int value) {
    CALL;
    constexpr int DYNAMIC_SHARED_BYTES = 8;
    // Of the 164 KiB of an A100, one is the system's.
    if (attribute != DYNAMIC_SHARED_BYTES || value > 163 * 1024) return INVALID_VALUE;
    ((Function *)function)->shared_bytes = (unsigned)value;
    return SUCCESS;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    if (!bytes) return INVALID_VALUE;
    size_t used = 0;
    for (auto &it : allocations)
        if (it.second.device == current->device) used += it.second.bytes;
    void *memory = used + bytes > DEVICE_BYTES ? nullptr : aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xFF, bytes);
    *address = (uint64_t)memory;
    allocations[*address] = {bytes, current->device};
    return SUCCESS;
}

EXPORT int cuMemFree_v2(uint64_t address) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    auto found = allocations.find(address);
    if (found == allocations.end()) return refuse(INVALID_VALUE, __func__, "nobody's address");
    for (Stream *stream : streams)
        if (!stream->capturing)
            if (int result = finish(stream)) return result;
    memset((void *)address, 0xFF, found->second.bytes);
    if (found->second.bytes > SMALL) free((void *)address);
    allocations.erase(found);
    return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CALL;
    *total = *free_bytes = DEVICE_BYTES;
    for (auto &it : allocations)
        if (it.second.device == current->device) *free_bytes -= it.second.bytes;
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    if (!inside(to, bytes)) return refuse(INVALID_VALUE, __func__, "beyond an allocation");
    std::vector<char> copied((const char *)from, (const char *)from + bytes);
    return put(stream, __func__, [=] {
        memcpy((void *)to, copied.data(), bytes);
        return 0;
    });
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    if (!inside(from, bytes)) return refuse(INVALID_VALUE, __func__, "beyond an allocation");
    int result = put(stream, __func__, [=] {
        memcpy(to, (const void *)from, bytes);
        return 0;
    });
    // A copy to memory that is not pinned is done when the call returns.
    return result ? result : finish(stream_of(stream));
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    CALL;
    if (!inside(to, bytes) || !inside(from, bytes)) return refuse(INVALID_VALUE, __func__, "beyond an allocation");
    return put(stream, __func__, [=] {
        memcpy((void *)to, (const void *)from, bytes);
        return 0;
    });
}

EXPORT int cuEventCreate(void **event, unsigned flags) {
    CALL;
    constexpr unsigned WITHOUT_TIME = 2;
    *event = new Event{!(flags & WITHOUT_TIME)};
    return SUCCESS;
}

EXPORT int cuEventDestroy_v2(void *event) {
    CALL;
    auto *it = (Event *)event;
    // Work that waits may still write it.
    if (it->past || !it->stream) delete it;
    return SUCCESS;
}

EXPORT int cuEventRecord(void *event, void *stream) {
    CALL;
    auto *it = (Event *)event;
    it->stream = stream_of(stream);
    it->past = false;
    return put(stream, __func__, [=] {
        it->milliseconds = now();
        it->past = true;
        return 0;
    });
}

EXPORT int cuEventSynchronize(void *event) {
    CALL;
    if (int result = not_while_capturing(__func__)) return result;
    Stream *stream = ((Event *)event)->stream;
    return stream ? finish(stream) : SUCCESS;
}

EXPORT int cuEventQuery(void *event) { return ((Event *)event)->past ? SUCCESS : NOT_READY; }

EXPORT int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    CALL;
    auto *from = (Event *)start, *to = (Event *)end;
    if (!from->timed || !to->timed) return refuse(INVALID_HANDLE, __func__, "an event without time");
    if (!from->past || !to->past) return NOT_READY;
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return SUCCESS;
}

#if CUDA_VERSION >= 12080
EXPORT int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
#endif

EXPORT int cuGetErrorName(int result, const char **text) {
    *text = name_of(result);
    return SUCCESS;
}

EXPORT int cuGetErrorString(int result, const char **text) { return cuGetErrorName(result, text); }

EXPORT int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                          unsigned threads_z, unsigned shared_bytes, void *stream, void **parameters, void **) {
    CALL;
    auto *it = (Function *)function;
    const char *name = it->name.c_str();
    if (it->module->context != current) return refuse(INVALID_HANDLE, name, "a module of another context");
    if (!x || !y || !z || x > 0x7FFFFFFF || y > 0xFFFF || z > 0xFFFF) return refuse(INVALID_VALUE, name, "the grid");
    auto bounds = it->module->kernels.find(name);
    unsigned most = bounds == it->module->kernels.end() ? 1024 : bounds->second.threads;
    if (!threads || threads > most || threads_y != 1 || threads_z != 1)
        return refuse(INVALID_VALUE, name, "more threads than its launch bounds");
    if (shared_bytes > it->shared_bytes) return refuse(INVALID_VALUE, name, "more shared memory than was asked for");
    std::vector<uint64_t> values((size_t)ddt_emulated_arguments(name));
    for (size_t i = 0; i < values.size(); i++) {
        if (!parameters[i]) return refuse(INVALID_VALUE, name, "a missing argument");
        memcpy(&values[i], parameters[i], 8);
    }
    launches[it->name]++;
    return put(stream, name, [=]() mutable {
        std::vector<void *> pointers;
        for (auto &value : values) pointers.push_back(&value);
        const unsigned grid[3] = {x, y, z};
        std::string copy = it->name;
        int outcome = ddt_emulate(copy.c_str(), grid, threads, shared_bytes, pointers.data(), (unsigned)pointers.size(), 0);
        return outcome ? refuse(LAUNCH_FAILED, copy.c_str(), "it did not run to its end") : SUCCESS;
    });
}

// --- cuBLASLt ---------------------------------------------------------------------------------------------

namespace {

enum Status { OK = 0, INVALID = 7, NOT_SUPPORTED = 15 };

struct Product {
    int transpose_a = 0, transpose_b = 0;
    unsigned epilogue = 1;
    uint64_t bias = 0;
};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Wishes {
    uint64_t workspace = 0;
    uint32_t reductions = ~0u;
};

struct Way {
    uint64_t data[8];
};

struct Suggestion {
    Way way;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

constexpr unsigned WITH_BIAS = 4;

// The three ways: a plain one; one that is suggested and then refuses, as libraries do; one that needs a workspace.
constexpr uint64_t WAYS = 3, REFUSES = 1, TAKES_SPACE = 2;
constexpr size_t SPACE = 4096;

template <class T> bool read_attribute(T &to, const void *from, size_t bytes) {
    if (bytes != sizeof(T)) return false;
    memcpy(&to, from, bytes);
    return true;
}

} // namespace

EXPORT size_t cublasLtGetVersion() { return 130000; }

EXPORT int cublasLtCreate(void **handle) {
    if (!current) return refuse(1, __func__, "no context on this thread");
    *handle = malloc(1);
    return OK;
}

EXPORT int cublasLtDestroy(void *handle) {
    if (!current) return refuse(1, __func__, "no context on this thread");
    free(handle);
    return OK;
}

EXPORT int cublasLtMatmulDescCreate(void **product, int compute, int scale) {
    constexpr int COMPUTE_32F = 68;
    if (compute != COMPUTE_32F || scale != R_32F) return NOT_SUPPORTED;
    *product = new Product;
    return OK;
}

EXPORT int cublasLtMatmulDescDestroy(void *product) {
    delete (Product *)product;
    return OK;
}

EXPORT int cublasLtMatmulDescSetAttribute(void *product, int attribute, const void *value, size_t bytes) {
    auto *it = (Product *)product;
    bool fits = false;
    switch (attribute) {
    case 3: fits = read_attribute(it->transpose_a, value, bytes); break;
    case 4: fits = read_attribute(it->transpose_b, value, bytes); break;
    case 7: fits = read_attribute(it->epilogue, value, bytes); break;
    case 8: fits = read_attribute(it->bias, value, bytes); break;
    }
    return fits ? OK : refuse(INVALID, __func__, "an unknown attribute, or of another size");
}

EXPORT int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return OK;
}

EXPORT int cublasLtMatrixLayoutDestroy(void *layout) {
    delete (Layout *)layout;
    return OK;
}

EXPORT int cublasLtMatmulPreferenceCreate(void **wishes) {
    *wishes = new Wishes;
    return OK;
}

EXPORT int cublasLtMatmulPreferenceDestroy(void *wishes) {
    delete (Wishes *)wishes;
    return OK;
}

EXPORT int cublasLtMatmulPreferenceSetAttribute(void *wishes, int attribute, const void *value, size_t bytes) {
    auto *it = (Wishes *)wishes;
    uint32_t alignment;
    bool fits = false;
    if (attribute == 1) fits = read_attribute(it->workspace, value, bytes);
    if (attribute == 3) fits = read_attribute(it->reductions, value, bytes);
    if (attribute >= 5 && attribute <= 8) fits = read_attribute(alignment, value, bytes);
    return fits ? OK : refuse(INVALID, __func__, "an unknown attribute, or of another size");
}

EXPORT int cublasLtMatmulAlgoCheck(void *, void *, void *, void *, void *, void *, const Way *way, Suggestion *result) {
    *result = Suggestion{};
    result->way = *way;
    result->workspace = way->data[0] == TAKES_SPACE ? SPACE : 0;
    return way->data[0] < WAYS ? OK : INVALID;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *product, void *, void *, void *, void *, void *wishes, int asked,
                                          Suggestion *suggestions, int *count) {
    // Sums of parts in the result's type would round it.
    constexpr uint32_t COMPUTE_TYPE = 2;
    auto *wanted = (Wishes *)wishes;
    if (wanted->reductions != COMPUTE_TYPE) return refuse(INVALID, __func__, "ways that sum in the result's type");
    if (((Product *)product)->epilogue == WITH_BIAS && !((Product *)product)->bias) return INVALID;
    *count = 0;
    for (uint64_t number = 0; number < WAYS && *count < asked; number++) {
        if (number == TAKES_SPACE && wanted->workspace < SPACE) continue;
        Way way{{number}};
        cublasLtMatmulAlgoCheck(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &way, &suggestions[(*count)++]);
    }
    return OK;
}

EXPORT int cublasLtMatmul(void *, void *product, const float *alpha, const void *a, Layout *layout_a, const void *b,
                          Layout *layout_b, const float *beta, const void *, Layout *, void *d, Layout *layout_d, const Way *way,
                          void *workspace, size_t workspace_bytes, void *stream) {
    Locked locked;
    if (!current) return refuse(1, __func__, "no context on this thread");
    if (way->data[0] == REFUSES) return NOT_SUPPORTED;
    if ((uint64_t)workspace % 256) return refuse(INVALID, __func__, "a workspace that is not at 256 bytes");
    Product it = *(Product *)product;
    Layout of_a = *layout_a, of_b = *layout_b, of_d = *layout_d;
    bool fits = it.transpose_a == 1 && it.transpose_b == 0 && of_a.rows == of_b.rows && of_a.columns == of_d.rows &&
                of_b.columns == of_d.columns && *alpha == 1 && *beta == 0;
    size_t size = of_d.type == R_32F ? 4 : 2;
    auto bytes = [=](const Layout &layout) { return (size_t)layout.stride * layout.columns * size; };
    bool there = inside((uint64_t)a, bytes(of_a)) && inside((uint64_t)b, bytes(of_b)) &&
                 inside((uint64_t)d, bytes(of_d)) && inside((uint64_t)workspace, workspace_bytes);
    if (!fits || !there) return refuse(INVALID, __func__, fits ? "beyond an allocation" : "shapes that do not fit");
    products++;
    int result = put(stream, __func__, [=] {
        size_t depth = of_a.rows, rows = of_d.rows, columns = of_d.columns;
        std::vector<float> left = rows_of(of_a.type, a, rows, depth, (size_t)of_a.stride, 1);
        std::vector<float> right = rows_of(of_b.type, b, columns, depth, (size_t)of_b.stride, 1);
        for (size_t j = 0; j < columns; j++)
            for (size_t i = 0; i < rows; i++) {
                float sum = dot(&left[i * depth], &right[j * depth], depth);
                if (it.epilogue == WITH_BIAS) sum += value_of(of_d.type, (const void *)it.bias, i);
                store(of_d.type, d, j * (size_t)of_d.stride + i, sum);
            }
        return 0;
    });
    return result ? INVALID : OK;
}
