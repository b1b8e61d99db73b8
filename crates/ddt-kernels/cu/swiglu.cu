// The gate of a feed-forward layer: (T, 2 F), a then b in each row, to silu(a) b, (T, F).
#include "device.h"

namespace ddt {

// 16 bytes of the result a thread.
template <class T> DEVICE void swiglu(const T *RESTRICT ab, T *RESTRICT out, unsigned tokens, unsigned hidden) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = hidden / COUNT;
    unsigned token = i / parts, column = i % parts * COUNT;
    if (token >= tokens) return;
    const T *row = ab + (size_t)token * 2 * hidden + column;
    float a[COUNT], b[COUNT];
    load_lanes(row, a);
    load_lanes(row + hidden, b);
    UNROLL for (int j = 0; j < COUNT; j++) a[j] = silu(a[j]) * b[j];
    store_lanes(out + (size_t)token * hidden + column, a);
}

// One element a thread, for rows that 16 bytes do not divide.
template <class T> DEVICE void swiglu_single(const T *RESTRICT ab, T *RESTRICT out, unsigned tokens, unsigned hidden) {
    unsigned token = item() / hidden, column = item() % hidden;
    if (token >= tokens) return;
    const T *row = ab + (size_t)token * 2 * hidden + column;
    from_float(silu(to_float(row[0])) * to_float(row[hidden]), out[(size_t)token * hidden + column]);
}

#define ENTRY(T, type)                                                                                 \
    KERNEL(256, 1) ddt_swiglu_##type(const T *ab, T *out, unsigned tokens, unsigned hidden) {          \
        swiglu<T>(ab, out, tokens, hidden);                                                            \
    }                                                                                                  \
    REGISTER(ddt_swiglu_##type)                                                                        \
    KERNEL(256, 1) ddt_swiglu_single_##type(const T *ab, T *out, unsigned tokens, unsigned hidden) {   \
        swiglu_single<T>(ab, out, tokens, hidden);                                                     \
    }                                                                                                  \
    REGISTER(ddt_swiglu_single_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY

}  // namespace ddt
