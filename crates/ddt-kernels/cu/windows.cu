// Windows for convolutions, pools and upsampling, of images stored as (B, H, W, C).
#include "device.h"

namespace ddt {

#define WINDOWS_PARAMETERS                                                                                  \
    unsigned height, unsigned width, unsigned out_height, unsigned out_width, unsigned window_height,       \
        unsigned window_width, unsigned stride, unsigned pad_rows, unsigned pad_columns
#define WINDOWS_VALUES \
    {height, width, out_height, out_width, window_height, window_width, stride, pad_rows, pad_columns}

// The windows of `count` result positions from `first`, (count, taps, C), zeros outside the image: the GEMM
// with a weight (out, taps, C) is the convolution. 16 bytes per thread.
template <class T>
DEVICE void gather(const T *RESTRICT x, T *RESTRICT out, unsigned first, unsigned count, unsigned channels,
                   Windows windows) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = channels / COUNT, taps = windows.window_height * windows.window_width;
    unsigned position = i / parts / taps, tap = i / parts % taps, channel = i % parts * COUNT;
    if (position >= count) return;
    long long from = tap_position(first + position, tap, windows);
    Sixteen value = {{0, 0, 0, 0}};
    if (from >= 0) value = load16(x + from * channels + channel);
    store16(out + (size_t)i * COUNT, value);
}

// The maximum of each window, or the mean of its part inside the image, for `count` result positions. 16 bytes per
// thread.
template <class T>
DEVICE void pool(const T *RESTRICT x, T *RESTRICT out, unsigned count, unsigned channels, unsigned mean,
                 Windows windows) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = channels / COUNT, position = i / parts, channel = i % parts * COUNT;
    if (position >= count) return;
    float most[COUNT], sum[COUNT] = {};
    UNROLL for (int j = 0; j < COUNT; j++) most[j] = -INFINITY;
    unsigned inside = 0;
    for (unsigned tap = 0; tap < windows.window_height * windows.window_width; tap++) {
        long long from = tap_position(position, tap, windows);
        if (from < 0) continue;
        inside++;
        float values[COUNT];
        load_lanes(x + from * channels + channel, values);
        UNROLL for (int j = 0; j < COUNT; j++) {
            sum[j] += values[j];
            // A comparison that keeps a NaN of either side.
            most[j] = values[j] <= most[j] || most[j] != most[j] ? most[j] : values[j];
        }
    }
    if (mean) {
        UNROLL for (int j = 0; j < COUNT; j++) most[j] = sum[j] / (float)inside;
    }
    store_lanes(out + (size_t)i * COUNT, most);
}

constexpr unsigned BIAS = 1, RELU = 2;

// (T, width) into columns of (T, stride), perhaps with a bias and through a ReLU: results side by side. 16 bytes a
// thread; `out` is where the first row's columns begin.
template <class T>
DEVICE void columns(const T *RESTRICT x, const T *RESTRICT bias, T *RESTRICT out, unsigned tokens, unsigned width,
                    unsigned stride, unsigned flags) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = width / COUNT, token = i / parts, column = i % parts * COUNT;
    if (token >= tokens) return;
    float v[COUNT], other[COUNT];
    load_lanes(x + (size_t)i * COUNT, v);
    if (flags & BIAS) {
        load_lanes(bias + column, other);
        UNROLL for (int j = 0; j < COUNT; j++) v[j] += other[j];
    }
    if (flags & RELU) {
        // A comparison that keeps NaN.
        UNROLL for (int j = 0; j < COUNT; j++) v[j] = v[j] < 0.0f ? 0.0f : v[j];
    }
    store_lanes(out + (size_t)token * stride + column, v);
}

// Every position twice in either direction, (B, H, W, C) to (B, 2 H, 2 W, C). 16 bytes a thread.
template <class T>
DEVICE void double_size(const T *RESTRICT x, T *RESTRICT out, unsigned images, unsigned height, unsigned width,
                        unsigned channels) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = channels / COUNT, position = i / parts, channel = i % parts * COUNT;
    unsigned column = position % (2 * width), row = position / (2 * width) % (2 * height);
    unsigned image = position / (2 * width) / (2 * height);
    if (image >= images) return;
    size_t from = ((size_t)image * height + row / 2) * width + column / 2;
    store16(out + (size_t)i * COUNT, load16(x + from * channels + channel));
}

// (B, C, P) to (B, P, wide): channels together, times `scale`, zeros beyond the last channel.
template <class T>
DEVICE void channels_last(const float *RESTRICT x, T *RESTRICT out, unsigned images, unsigned channels,
                          unsigned positions, unsigned wide, float scale) {
    unsigned i = item(), channel = i % wide, position = i / wide % positions, image = i / wide / positions;
    if (image >= images) return;
    float value = 0.0f;
    if (channel < channels) value = x[((size_t)image * channels + channel) * positions + position] * scale;
    from_float(value, out[i]);
}

// (B, P, wide) to (B, C, P): the first channels of each position, apart.
template <class T>
DEVICE void channels_first(const T *RESTRICT x, float *RESTRICT out, unsigned images, unsigned channels,
                           unsigned positions, unsigned wide) {
    unsigned i = item(), position = i % positions, channel = i / positions % channels, image = i / positions / channels;
    if (image >= images) return;
    out[i] = to_float(x[((size_t)image * positions + position) * wide + channel]);
}

// x += y, whose numbers are f32. 16 bytes of x a thread.
template <class T> DEVICE void accumulate(T *RESTRICT x, const float *RESTRICT y, unsigned parts) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item();
    if (i >= parts) return;
    float sum[COUNT];
    load_lanes(x + (size_t)i * COUNT, sum);
    UNROLL for (int j = 0; j < COUNT; j += 4) {
        float more[4];
        load_lanes(y + (size_t)i * COUNT + j, more);
        UNROLL for (int k = 0; k < 4; k++) sum[j + k] += more[k];
    }
    store_lanes(x + (size_t)i * COUNT, sum);
}

#define ENTRY(T, type)                                                                                            \
    KERNEL(256, 1) ddt_gather_##type(const T *x, T *out, unsigned first, unsigned count, unsigned channels,       \
                                     WINDOWS_PARAMETERS) {                                                        \
        gather<T>(x, out, first, count, channels, WINDOWS_VALUES);                                                \
    }                                                                                                             \
    REGISTER(ddt_gather_##type)                                                                                   \
    KERNEL(256, 1) ddt_pool_##type(const T *x, T *out, unsigned count, unsigned channels, unsigned mean,          \
                                   WINDOWS_PARAMETERS) {                                                          \
        pool<T>(x, out, count, channels, mean, WINDOWS_VALUES);                                                   \
    }                                                                                                             \
    REGISTER(ddt_pool_##type)                                                                                     \
    KERNEL(256, 1) ddt_columns_##type(const T *x, const T *bias, T *out, unsigned tokens, unsigned width,         \
                                      unsigned stride, unsigned flags) {                                          \
        columns<T>(x, bias, out, tokens, width, stride, flags);                                                   \
    }                                                                                                             \
    REGISTER(ddt_columns_##type)                                                                                  \
    KERNEL(256, 1) ddt_double_size_##type(const T *x, T *out, unsigned images, unsigned height, unsigned width,   \
                                          unsigned channels) {                                                    \
        double_size<T>(x, out, images, height, width, channels);                                                  \
    }                                                                                                             \
    REGISTER(ddt_double_size_##type)                                                                              \
    KERNEL(256, 1) ddt_channels_last_##type(const float *x, T *out, unsigned images, unsigned channels,           \
                                            unsigned positions, unsigned wide, float scale) {                     \
        channels_last<T>(x, out, images, channels, positions, wide, scale);                                       \
    }                                                                                                             \
    REGISTER(ddt_channels_last_##type)                                                                            \
    KERNEL(256, 1) ddt_channels_first_##type(const T *x, float *out, unsigned images, unsigned channels,          \
                                             unsigned positions, unsigned wide) {                                 \
        channels_first<T>(x, out, images, channels, positions, wide);                                             \
    }                                                                                                             \
    REGISTER(ddt_channels_first_##type)                                                                           \
    KERNEL(256, 1) ddt_accumulate_##type(T *x, const float *y, unsigned parts) { accumulate<T>(x, y, parts); }    \
    REGISTER(ddt_accumulate_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY
#undef WINDOWS_PARAMETERS
#undef WINDOWS_VALUES

}  // namespace ddt
