// The stand-in of stand_in.cpp with what candle's CUDA backend calls beside it: memory in stream order, cuBLAS and cuRAND.
//
// A program that uses candle is linked with NVIDIA's libraries, so this is built before it, with a function for every
// name that the libraries have. Those that are not here refuse.

#include "stand_in.cpp"

// --- Memory in stream order -------------------------------------------------------------------------------

EXPORT int cuMemAllocAsync(uint64_t *address, size_t bytes, void *) { return cuMemAlloc_v2(address, bytes); }

// What was put on the stream before may still use the memory, and nothing that comes later.
EXPORT int cuMemFreeAsync(uint64_t address, void *stream) {
    CALL;
    auto found = allocations.find(address);
    if (found == allocations.end()) return refuse(INVALID_VALUE, __func__, "nobody's address");
    size_t bytes = found->second.bytes;
    allocations.erase(found);
    return put(stream, __func__, [=] {
        memset((void *)address, 0xFF, bytes);
        free((void *)address);
        return 0;
    });
}

EXPORT int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    CALL;
    if (!inside(address, bytes)) return refuse(INVALID_VALUE, __func__, "beyond an allocation");
    return put(stream, __func__, [=] {
        memset((void *)address, value, bytes);
        return 0;
    });
}

// --- cuBLAS -----------------------------------------------------------------------------------------------

namespace {

struct Handle {
    void *stream = nullptr;
};

// Where the matrix of one product of a batch begins, and how its rows lie. Matrices are column-major.
struct Operand {
    const char *start;
    int type;
    size_t rows, depth, row, step, batch_bytes;

    std::vector<float> read(int nth) const {
        return rows_of(type, start + (size_t)nth * batch_bytes, rows, depth, row, step);
    }
    // Bytes from the first element of a matrix to behind the last.
    size_t bytes() const {
        size_t last = (rows - 1) * row + (depth - 1) * step;
        return (last + 1) * (type == R_32F ? 4 : 2);
    }
    bool there(int count) const {
        uint64_t first = (uint64_t)start;
        return inside(first, bytes()) && inside(first + (size_t)(count - 1) * batch_bytes, bytes());
    }
};

// `transposed`: whether rows of length `depth` are the matrix's columns, which lie together.
Operand operand(const void *start, int type, int rows, int depth, int leading, bool together, long long batch) {
    size_t size = type == R_32F ? 4 : 2;
    size_t row = together ? (size_t)leading : 1, step = together ? 1 : (size_t)leading;
    return {(const char *)start, type, (size_t)rows, (size_t)depth, row, step, (size_t)batch * size};
}

} // namespace

EXPORT int cublasCreate_v2(void **handle) {
    if (!current) return refuse(1, __func__, "no context on this thread");
    *handle = new Handle;
    return OK;
}

EXPORT int cublasDestroy_v2(void *handle) {
    delete (Handle *)handle;
    return OK;
}

EXPORT int cublasSetStream_v2(void *handle, void *stream) {
    ((Handle *)handle)->stream = stream;
    return OK;
}

EXPORT int cublasGemmStridedBatchedEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const float *alpha,
                                      const void *a, int type_a, int lda, long long batch_a, const void *b, int type_b, int ldb,
                                      long long batch_b, const float *beta, void *c, int type_c, int ldc, long long batch_c,
                                      int count, int compute, int) {
    Locked locked;
    if (!current) return refuse(1, __func__, "no context on this thread");
    constexpr int COMPUTE_32F = 68;
    bool known = type_a == R_32F || type_a == R_16F || type_a == R_16BF;
    if (!known || type_b != type_a || type_c != type_a || compute != COMPUTE_32F)
        return refuse(NOT_SUPPORTED, __func__, "other types than those of the networks");
    if (m <= 0 || n <= 0 || k <= 0 || count <= 0 || *alpha != 1 || *beta != 0)
        return refuse(INVALID, __func__, "sizes or factors");
    if (lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m)
        return refuse(INVALID, __func__, "columns that overlap");
    Operand left = operand(a, type_a, m, k, lda, transpose_a, batch_a);
    Operand right = operand(b, type_b, n, k, ldb, !transpose_b, batch_b);
    Operand out = operand(c, type_c, n, m, ldc, true, batch_c);
    if (!left.there(count) || !right.there(count) || !out.there(count))
        return refuse(INVALID, __func__, "beyond an allocation");
    products++;
    int result = put(((Handle *)handle)->stream, __func__, [=] {
        for (int nth = 0; nth < count; nth++) {
            std::vector<float> x = left.read(nth), y = right.read(nth);
            void *to = (void *)(out.start + (size_t)nth * out.batch_bytes);
            for (size_t j = 0; j < right.rows; j++)
                for (size_t i = 0; i < left.rows; i++)
                    store(out.type, to, j * out.row + i, dot(&x[i * left.depth], &y[j * left.depth], left.depth));
        }
        return 0;
    });
    return result ? INVALID : OK;
}

// --- cuRAND -----------------------------------------------------------------------------------------------

// candle makes a generator with each device; this project's numbers are made on the host.
EXPORT int curandCreateGenerator(void **generator, int) {
    *generator = malloc(1);
    return 0;
}

EXPORT int curandDestroyGenerator(void *generator) {
    free(generator);
    return 0;
}

EXPORT int curandSetStream(void *, void *) { return 0; }

EXPORT int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
