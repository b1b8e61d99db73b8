// Gate, bias and residual; then norm and modulation. One warp a token, whose row stays in registers: each
// element is read once and written once.
#include "device.h"

namespace ddt {

constexpr unsigned BRANCH = 1, RMS = 2, LAYER = 4;

// Rows of T that apply to tokens; see index.h.
#define ROWS(T, name) const T *RESTRICT name, unsigned name##_stride, unsigned name##_tokens
#define ROWS_VALUES(name) name, name##_stride, name##_tokens
#define ROW(name, token) (name + (size_t)row_of(token, name##_tokens) * name##_stride)

#define GATE_NORM_PARAMETERS(T)                                                                        \
    T *x, unsigned tokens, unsigned width, const T *RESTRICT y, const T *RESTRICT bias, ROWS(T, gate), \
        const T *RESTRICT weight, ROWS(T, shift), ROWS(T, scale), float eps, T *out, unsigned flags
#define GATE_NORM_VALUES                                                                              \
    x, tokens, width, y, bias, ROWS_VALUES(gate), weight, ROWS_VALUES(shift), ROWS_VALUES(scale), eps, \
        out, flags

template <class T, int CHUNKS> DEVICE void gate_norm(GATE_NORM_PARAMETERS(T)) {
    unsigned token = item() / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    T *x_row = x + (size_t)token * width;
    float v[CHUNKS][CHUNK_LANE];
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
        unsigned column = chunk_column(lane, chunk);
        if (column < width) {
            load8(x_row + column, v[chunk]);
        } else {
            UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] = 0.0f;
        }
    }
    if (flags & BRANCH) {
        const T *y_row = y + (size_t)token * width, *gate_row = ROW(gate, token);
        UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
            unsigned column = chunk_column(lane, chunk);
            if (column >= width) continue;
            float branch[CHUNK_LANE], factor[CHUNK_LANE];
            load8(y_row + column, branch);
            if (bias) {
                load8(bias + column, factor);
                UNROLL for (int i = 0; i < CHUNK_LANE; i++) branch[i] += factor[i];
            }
            load8(gate_row + column, factor);
            UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] = fmaf(factor[i], branch[i], v[chunk][i]);
            store8(x_row + column, v[chunk]);
        }
    }
    if (!(flags & (RMS | LAYER))) return;
    float mean = 0.0f;
    if (flags & LAYER) {
        float sum = 0.0f;
        UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++)
            UNROLL for (int i = 0; i < CHUNK_LANE; i++) sum += v[chunk][i];
        mean = warp_sum(sum) / width;
    }
    float squares = 0.0f;
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
        // Padding does not count towards the variance.
        if (chunk_column(lane, chunk) >= width) continue;
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) {
            v[chunk][i] -= mean;
            squares = fmaf(v[chunk][i], v[chunk][i], squares);
        }
    }
    float inverse = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    const T *shift_row = ROW(shift, token), *scale_row = ROW(scale, token);
    T *out_row = out + (size_t)token * width;
    UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
        unsigned column = chunk_column(lane, chunk);
        if (column >= width) continue;
        float other[CHUNK_LANE];
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] *= inverse;
        if (flags & RMS) {
            load8(weight + column, other);
            UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] *= other[i];
        }
        load8(scale_row + column, other);
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] = fmaf(v[chunk][i], other[i], v[chunk][i]);
        load8(shift_row + column, other);
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] += other[i];
        store8(out_row + column, v[chunk]);
    }
}

#define ENTRY(T, type, chunks)                                                     \
    KERNEL(128, 1) ddt_gate_norm_##chunks##_##type(GATE_NORM_PARAMETERS(T)) {      \
        gate_norm<T, chunks>(GATE_NORM_VALUES);                                    \
    }                                                                              \
    REGISTER(ddt_gate_norm_##chunks##_##type)
#define ENTRIES(chunks) ENTRY(bf16, bf16, chunks) ENTRY(float, f32, chunks)

ENTRIES(1)
ENTRIES(2)
ENTRIES(3)
ENTRIES(4)
ENTRIES(5)
ENTRIES(6)
ENTRIES(7)
ENTRIES(8)

#undef ENTRY
#undef ENTRIES

}  // namespace ddt
