// Group normalisation of images whose channels stand together, (B, P, C), in three launches: moments of pieces of
// each channel, then each channel's scale and shift, then the map with its activation. No atomics: the same
// numbers always sum in the same order.
#include "device.h"

namespace ddt {

constexpr int MOMENT_THREADS = 256;

// Mean and sum of squared deviations of each channel over `piece` positions, (B, pieces, C, 2); block (piece,
// image). Values are taken relative to the piece's first, so that a mean far from 0 costs no digits.
template <class T>
DEVICE void group_norm_moments(const T *RESTRICT x, float *RESTRICT moments, unsigned positions, unsigned channels,
                               unsigned piece) {
    constexpr int COUNT = Lanes<T>::COUNT;
    SHARED(float, sums, MOMENT_THREADS * COUNT);
    SHARED(float, squares, MOMENT_THREADS * COUNT);
    unsigned across = channels / COUNT, down = MOMENT_THREADS / across;
    unsigned column = threadIdx.x % across, row = threadIdx.x / across;
    unsigned first = blockIdx.x * piece;
    unsigned end = positions - first < piece ? positions : first + piece;
    const T *image = x + (size_t)blockIdx.y * positions * channels + column * COUNT;
    float origin[COUNT], sum[COUNT] = {}, square[COUNT] = {};
    load_lanes(image + (size_t)first * channels, origin);
    // Threads that make no whole row idle.
    if (row < down)
        for (unsigned position = first + row; position < end; position += down) {
            float values[COUNT];
            load_lanes(image + (size_t)position * channels, values);
            UNROLL for (int j = 0; j < COUNT; j++) {
                float value = values[j] - origin[j];
                sum[j] += value;
                square[j] = fmaf(value, value, square[j]);
            }
        }
    UNROLL for (int j = 0; j < COUNT; j++) {
        sums[threadIdx.x * COUNT + j] = sum[j];
        squares[threadIdx.x * COUNT + j] = square[j];
    }
    barrier();
    if (row > 0) return;
    float count = end - first;
    float *to = moments + (((size_t)blockIdx.y * gridDim.x + blockIdx.x) * channels + column * COUNT) * 2;
    for (int j = 0; j < COUNT; j++) {
        float total = 0.0f, total_square = 0.0f;
        for (unsigned r = 0; r < down; r++) {
            total += sums[(r * across + column) * COUNT + j];
            total_square += squares[(r * across + column) * COUNT + j];
        }
        to[2 * j] = origin[j] + total / count;
        to[2 * j + 1] = fmaxf(total_square - total * total / count, 0.0f);
    }
}

// Moments of two sets of numbers, together.
DEVICE void join(float &count, float &mean, float &square, float count2, float mean2, float square2) {
    float all = count + count2;
    if (all == 0.0f) return;
    float difference = mean2 - mean, part = count2 / all;
    mean += difference * part;
    square += square2 + difference * difference * count * part;
    count = all;
}

// Scale and shift of each channel, (B, 2, C), from the moments of the pieces; warp (group, image).
template <class T>
DEVICE void group_norm_scales(const float *RESTRICT moments, const T *RESTRICT weight, const T *RESTRICT bias,
                              float *RESTRICT scales, unsigned positions, unsigned channels, unsigned piece,
                              float eps) {
    unsigned lane = threadIdx.x, members = channels / gridDim.x, start = blockIdx.x * members;
    unsigned pieces = (positions + piece - 1) / piece;
    float count = 0.0f, mean = 0.0f, square = 0.0f;
    for (unsigned i = lane; i < pieces * members; i += 32) {
        unsigned nth = i / members;
        unsigned length = positions - nth * piece < piece ? positions - nth * piece : piece;
        const float *at = moments + (((size_t)blockIdx.y * pieces + nth) * channels + start + i % members) * 2;
        join(count, mean, square, length, at[0], at[1]);
    }
    UNROLL for (int mask = 16; mask > 0; mask /= 2) {
        float count2 = shuffle_xor(count, mask), mean2 = shuffle_xor(mean, mask), square2 = shuffle_xor(square, mask);
        join(count, mean, square, count2, mean2, square2);
    }
    // Lanes have joined in different orders: all take the first one's result.
    mean = shuffle(mean, 0);
    float inverse = 1.0f / sqrtf(shuffle(square, 0) / shuffle(count, 0) + eps);
    float *to = scales + (size_t)blockIdx.y * 2 * channels;
    for (unsigned i = start + lane; i < start + members; i += 32) {
        float scale = to_float(weight[i]) * inverse;
        to[i] = scale;
        to[channels + i] = to_float(bias[i]) - mean * scale;
    }
}

DEVICE void store_wide(bf16 *to, const float *from, bf16) { store8(to, from); }
DEVICE void store_wide(float *to, const float *from, bf16) { store8(to, from); }
DEVICE void store_wide(float *to, const float *from, float) { store_lanes(to, from); }

// x scale + shift, and SiLU of that if asked for. 16 bytes of x a thread.
template <class T, class O>
DEVICE void group_norm_apply(const T *RESTRICT x, const float *RESTRICT scales, O *RESTRICT out, unsigned images,
                             unsigned positions, unsigned channels, unsigned activate) {
    constexpr int COUNT = Lanes<T>::COUNT;
    unsigned i = item(), parts = channels / COUNT, image = i / parts / positions, channel = i % parts * COUNT;
    if (image >= images) return;
    float values[COUNT];
    load_lanes(x + (size_t)i * COUNT, values);
    const float *scale = scales + (size_t)image * 2 * channels + channel;
    UNROLL for (int j = 0; j < COUNT; j++) {
        float value = fmaf(values[j], scale[j], scale[channels + j]);
        values[j] = activate ? silu(value) : value;
    }
    store_wide(out + (size_t)i * COUNT, values, T());
}

#define ENTRY(T, type)                                                                                               \
    KERNEL(MOMENT_THREADS, 1) ddt_group_norm_moments_##type(const T *x, float *moments, unsigned positions,          \
                                                            unsigned channels, unsigned piece) {                     \
        group_norm_moments<T>(x, moments, positions, channels, piece);                                               \
    }                                                                                                                \
    REGISTER(ddt_group_norm_moments_##type)                                                                          \
    KERNEL(32, 1) ddt_group_norm_scales_##type(const float *moments, const T *weight, const T *bias, float *scales,  \
                                               unsigned positions, unsigned channels, unsigned piece, float eps) {   \
        group_norm_scales<T>(moments, weight, bias, scales, positions, channels, piece, eps);                        \
    }                                                                                                                \
    REGISTER(ddt_group_norm_scales_##type)                                                                           \
    KERNEL(256, 1) ddt_group_norm_apply_##type(const T *x, const float *scales, T *out, unsigned images,             \
                                               unsigned positions, unsigned channels, unsigned activate) {           \
        group_norm_apply<T, T>(x, scales, out, images, positions, channels, activate);                               \
    }                                                                                                                \
    REGISTER(ddt_group_norm_apply_##type)                                                                            \
    KERNEL(256, 1) ddt_group_norm_widen_##type(const T *x, const float *scales, float *out, unsigned images,         \
                                               unsigned positions, unsigned channels, unsigned activate) {           \
        group_norm_apply<T, float>(x, scales, out, images, positions, channels, activate);                           \
    }                                                                                                                \
    REGISTER(ddt_group_norm_widen_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY

}  // namespace ddt
