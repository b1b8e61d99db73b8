// The gate of a feed-forward layer: silu(a) b, (T, F), where rows of a and of b are `stride` apart: in one matrix,
// a then b in each row, or in two.
#include "device.h"

namespace ddt {

#define SWIGLU_PARAMETERS(T) \
    const T *RESTRICT a, const T *RESTRICT b, T *RESTRICT out, unsigned tokens, unsigned hidden, unsigned stride
#define SWIGLU_VALUES a, b, out, tokens, hidden, stride

// 16 bytes of the result a thread.
template <class T> DEVICE void swiglu(SWIGLU_PARAMETERS(T)) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = hidden / COUNT;
    unsigned token = i / parts, column = i % parts * COUNT;
    if (token >= tokens) return;
    size_t at = (size_t)token * stride + column;
    float v[COUNT], factor[COUNT];
    load_lanes(a + at, v);
    load_lanes(b + at, factor);
    UNROLL for (int j = 0; j < COUNT; j++) v[j] = silu(v[j]) * factor[j];
    store_lanes(out + (size_t)token * hidden + column, v);
}

// One element a thread, for rows that 16 bytes do not divide.
template <class T> DEVICE void swiglu_single(SWIGLU_PARAMETERS(T)) {
    unsigned token = item() / hidden, column = item() % hidden;
    if (token >= tokens) return;
    size_t at = (size_t)token * stride + column;
    from_float(silu(to_float(a[at])) * to_float(b[at]), out[(size_t)token * hidden + column]);
}

#define ENTRY(T, type)                                                \
    KERNEL(256, 1) ddt_swiglu_##type(SWIGLU_PARAMETERS(T)) {          \
        swiglu<T>(SWIGLU_VALUES);                                     \
    }                                                                 \
    REGISTER(ddt_swiglu_##type)                                       \
    KERNEL(256, 1) ddt_swiglu_single_##type(SWIGLU_PARAMETERS(T)) {   \
        swiglu_single<T>(SWIGLU_VALUES);                              \
    }                                                                 \
    REGISTER(ddt_swiglu_single_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY
#undef SWIGLU_PARAMETERS
#undef SWIGLU_VALUES

}  // namespace ddt
