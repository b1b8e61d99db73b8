// Sums with rows, with or without SiLU; and the condition that starts the encoder.
#include "device.h"

namespace ddt {

constexpr unsigned ADDEND = 1, SILU = 2;

// 16 bytes a thread; `out` may be `x`.
template <class T>
DEVICE void add_rows(const T *x, T *out, unsigned tokens, unsigned width, const T *RESTRICT addend, unsigned stride,
                     unsigned tokens_per_row, unsigned flags) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = width / COUNT;
    unsigned token = i / parts, column = i % parts * COUNT;
    if (token >= tokens) return;
    float v[COUNT], other[COUNT];
    load_lanes(x + (size_t)token * width + column, v);
    if (flags & ADDEND) {
        load_lanes(addend + (size_t)row_of(token, tokens_per_row) * stride + column, other);
        UNROLL for (int j = 0; j < COUNT; j++) v[j] += other[j];
    }
    if (flags & SILU) {
        UNROLL for (int j = 0; j < COUNT; j++) v[j] = silu(v[j]);
    }
    store_lanes(out + (size_t)token * width + column, v);
}

// One element a thread: silu(time + table[label]), or table[label] without a time. A label outside the table gives NaN, not another class.
template <class T>
DEVICE void class_condition(const unsigned *RESTRICT labels, const T *RESTRICT table, const T *RESTRICT time,
                            T *RESTRICT out, unsigned rows, unsigned width, unsigned classes) {
    unsigned row = item() / width, column = item() % width;
    if (row >= rows) return;
    unsigned label = labels[row];
    float value = as_float(0x7FC00000u);
    if (label < classes) value = to_float(table[(size_t)label * width + column]);
    if (time) value = silu(to_float(time[column]) + value);
    from_float(value, out[(size_t)row * width + column]);
}

#define ENTRY(T, type)                                                                                          \
    KERNEL(256, 1) ddt_add_rows_##type(const T *x, T *out, unsigned tokens, unsigned width, const T *addend,    \
                                       unsigned stride, unsigned tokens_per_row, unsigned flags) {              \
        add_rows<T>(x, out, tokens, width, addend, stride, tokens_per_row, flags);                              \
    }                                                                                                           \
    REGISTER(ddt_add_rows_##type)                                                                               \
    KERNEL(256, 1) ddt_class_condition_##type(const unsigned *labels, const T *table, const T *time, T *out,    \
                                              unsigned rows, unsigned width, unsigned classes) {                \
        class_condition<T>(labels, table, time, out, rows, width, classes);                                     \
    }                                                                                                           \
    REGISTER(ddt_class_condition_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY

}  // namespace ddt
