// Softmax of rows, f32, in place.
#include "device.h"

namespace ddt {

constexpr int SOFTMAX_THREADS = 256;

// softmax(scale row), a block a row.
DEVICE void softmax_row(float *row, unsigned length, float scale) {
    SHARED(float, parts, 2 * SOFTMAX_THREADS / 32);
    unsigned warp = threadIdx.x / 32;
    float most = -INFINITY;
    for (unsigned i = threadIdx.x; i < length; i += SOFTMAX_THREADS) most = fmaxf(most, row[i] * scale);
    parts[warp] = warp_max(most);
    barrier();
    for (int i = 0; i < SOFTMAX_THREADS / 32; i++) most = fmaxf(most, parts[i]);
    float total = 0.0f;
    for (unsigned i = threadIdx.x; i < length; i += SOFTMAX_THREADS) {
        float weight = expf(row[i] * scale - most);
        row[i] = weight;
        total += weight;
    }
    parts[SOFTMAX_THREADS / 32 + warp] = warp_sum(total);
    barrier();
    total = 0.0f;
    for (int i = 0; i < SOFTMAX_THREADS / 32; i++) total += parts[SOFTMAX_THREADS / 32 + i];
    for (unsigned i = threadIdx.x; i < length; i += SOFTMAX_THREADS) row[i] /= total;
}

KERNEL(SOFTMAX_THREADS, 1) ddt_softmax_rows(float *x, unsigned length, float scale) {
    softmax_row(x + (size_t)blockIdx.x * length, length, scale);
}
REGISTER(ddt_softmax_rows)

}  // namespace ddt
