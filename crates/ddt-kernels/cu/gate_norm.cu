// Gate, bias and residual; then norm and modulation. One warp a token, whose row stays in registers: each
// element is read once and written once. Gate, shift and scale may be weighted sums of a few sets of them, which are
// computed where they are read.
#include "steps.h"

namespace ddt {

constexpr unsigned BRANCH = 1, RMS = 2, LAYER = 4;

// Rows of T that apply to tokens; see index.h.
#define ROWS(T, name) const T *RESTRICT name, unsigned name##_stride, unsigned name##_tokens
#define ROWS_VALUES(name) name, name##_stride, name##_tokens
#define ROW(name, token) (name + (size_t)row_of(token, name##_tokens) * name##_stride)

#define GATE_NORM_PARAMETERS(T)                                                                        \
    const T *x, T *sum, unsigned tokens, unsigned width, const T *RESTRICT y, const T *RESTRICT bias, ROWS(T, gate), \
        const T *RESTRICT weight, ROWS(T, shift), ROWS(T, scale), float eps, T *out, unsigned flags
#define GATE_NORM_VALUES                                                                              \
    x, sum, tokens, width, y, bias, ROWS_VALUES(gate), weight, ROWS_VALUES(shift), ROWS_VALUES(scale), eps, \
        out, flags

// Sets of modulations: an element of the first is `stride` further in the second.
struct Sets {
    unsigned count;
    size_t stride;
    // Only of more than one set.
    float weights[MAX_SETS];
};

DEVICE Sets weighted(unsigned count, size_t stride, Steps steps) {
    Sets sets{count, stride, {}};
    const float *weights = step_row(steps) + STEP_WEIGHTS;
    UNROLL for (unsigned set = 0; set < MAX_SETS; set++) sets.weights[set] = weights[set];
    return sets;
}

// Eight neighbours of the weighted sum, in f32; of one set, the elements as they are.
template <class T> DEVICE void load8_sum(const T *from, const Sets &sets, float *to) {
    load8(from, to);
    if (sets.count == 1) return;
    UNROLL for (int i = 0; i < CHUNK_LANE; i++) to[i] *= sets.weights[0];
    UNROLL for (unsigned set = 1; set < MAX_SETS; set++) {
        // What is not there is not read: it may be NaN, which no weight removes.
        if (set >= sets.count) continue;
        float other[CHUNK_LANE];
        load8(from + set * sets.stride, other);
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) to[i] = fmaf(sets.weights[set], other[i], to[i]);
    }
}

template <class T, int CHUNKS> DEVICE void gate_norm(GATE_NORM_PARAMETERS(T), Sets sets) {
    unsigned token = item() / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    const T *x_row = x + (size_t)token * width;
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
        // It may be that of x: an element is read before it is written, by the same thread.
        T *sum_row = sum + (size_t)token * width;
        UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
            unsigned column = chunk_column(lane, chunk);
            if (column >= width) continue;
            float branch[CHUNK_LANE], factor[CHUNK_LANE];
            load8(y_row + column, branch);
            if (bias) {
                load8(bias + column, factor);
                UNROLL for (int i = 0; i < CHUNK_LANE; i++) branch[i] += factor[i];
            }
            load8_sum(gate_row + column, sets, factor);
            UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] = fmaf(factor[i], branch[i], v[chunk][i]);
            store8(sum_row + column, v[chunk]);
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
        load8_sum(scale_row + column, sets, other);
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] = fmaf(v[chunk][i], other[i], v[chunk][i]);
        load8_sum(shift_row + column, sets, other);
        UNROLL for (int i = 0; i < CHUNK_LANE; i++) v[chunk][i] += other[i];
        store8(out_row + column, v[chunk]);
    }
}

// Compiled once for one set, as if there were no others, and once for more.
#define ENTRY(T, type, chunks)                                                                       \
    KERNEL(128, 1) ddt_gate_norm_##chunks##_##type(GATE_NORM_PARAMETERS(T), unsigned sets,           \
                                                   size_t set_stride, STEPS) {                       \
        if (sets == 1)                                                                               \
            gate_norm<T, chunks>(GATE_NORM_VALUES, Sets{1, 0, {}});                                  \
        else                                                                                         \
            gate_norm<T, chunks>(GATE_NORM_VALUES, weighted(sets, set_stride, Steps{STEPS_VALUES})); \
    }                                                                                                \
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
