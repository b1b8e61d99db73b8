// Attention in the plainest correct way, f32 throughout: one warp a query, a block of 8 queries shares 32 keys
// at a time. It serves f32, and is what the fast kernel is compared with.
#include "device.h"

namespace ddt {

constexpr int PLAIN_WARPS = 8, PLAIN_KEYS = 32, PLAIN_K = 128;
// One more, so that 32 lanes reading 32 rows meet 32 banks.
constexpr int PLAIN_STRIDE = PLAIN_K + 1;

// A query or key of a head, normed, weighted and turned: the warp's row of f32. `lane` takes pairs.
template <class T>
DEVICE void norm_turn(const T *row, const T *weight, const float *turns, int k, float eps, float *to) {
    int lane = threadIdx.x % 32;
    float squares = 0.0f;
    for (int i = lane; i < k; i += 32) squares += to_float(row[i]) * to_float(row[i]);
    float inverse = 1.0f / sqrtf(warp_sum(squares) / k + eps);
    for (int pair = lane; pair < k / 2; pair += 32) {
        float re = to_float(row[2 * pair]) * inverse * to_float(weight[2 * pair]);
        float im = to_float(row[2 * pair + 1]) * inverse * to_float(weight[2 * pair + 1]);
        float cos = turns[2 * pair], sin = turns[2 * pair + 1];
        to[2 * pair] = re * cos - im * sin;
        to[2 * pair + 1] = re * sin + im * cos;
    }
}

#define ATTENTION_PARAMETERS(T)                                                                              \
    const T *RESTRICT qkv, const T *RESTRICT q_weight, const T *RESTRICT k_weight, const float *RESTRICT rope, \
        T *RESTRICT out, unsigned tokens, unsigned heads, unsigned head_dim, float eps
#define ATTENTION_VALUES qkv, q_weight, k_weight, rope, out, tokens, heads, head_dim, eps

template <class T> DEVICE void attention_plain(ATTENTION_PARAMETERS(T)) {
    SHARED(float, queries, PLAIN_WARPS * PLAIN_K);
    SHARED(float, keys, PLAIN_KEYS * PLAIN_STRIDE);
    SHARED(float, values, PLAIN_KEYS * PLAIN_K);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = head_dim;
    unsigned token = blockIdx.x * PLAIN_WARPS + warp, head = blockIdx.y;
    unsigned long long first = (unsigned long long)blockIdx.z * tokens;
    // The last block's surplus warps work on the last query, and do not write.
    unsigned query = token < tokens ? token : tokens - 1;
    float *q = queries + warp * PLAIN_K;
    norm_turn(qkv + qkv_at(first + query, 0, head, heads, k), q_weight, rope + (size_t)query * k, k, eps, q);
    float most = -INFINITY, total = 0.0f, sums[PLAIN_K / 32] = {};
    for (unsigned base = 0; base < tokens; base += PLAIN_KEYS) {
        barrier();
        for (int r = warp; r < PLAIN_KEYS; r += PLAIN_WARPS) {
            // Keys beyond the last are read as the last, and get no weight.
            unsigned key = base + r < tokens ? base + r : tokens - 1;
            norm_turn(qkv + qkv_at(first + key, 1, head, heads, k), k_weight, rope + (size_t)key * k, k, eps,
                      keys + r * PLAIN_STRIDE);
            const T *value = qkv + qkv_at(first + key, 2, head, heads, k);
            for (int i = lane; i < k; i += 32) values[r * PLAIN_K + i] = to_float(value[i]);
        }
        barrier();
        float score = 0.0f;
        for (int i = 0; i < k; i++) score = fmaf(q[i], keys[lane * PLAIN_STRIDE + i], score);
        score = base + lane < tokens ? score / sqrtf((float)k) : -INFINITY;
        float larger = fmaxf(most, warp_max(score));
        float keep = expf(most - larger), weight = expf(score - larger);
        most = larger;
        total = total * keep + warp_sum(weight);
        UNROLL for (int j = 0; j < PLAIN_K / 32; j++) sums[j] *= keep;
        for (int r = 0; r < PLAIN_KEYS; r++) {
            float w = shuffle(weight, r);
            UNROLL for (int j = 0; j < PLAIN_K / 32; j++)
                if (lane + 32 * j < k) sums[j] = fmaf(w, values[r * PLAIN_K + lane + 32 * j], sums[j]);
        }
    }
    if (token >= tokens) return;
    T *row = out + ((first + token) * heads + head) * k;
    UNROLL for (int j = 0; j < PLAIN_K / 32; j++)
        if (lane + 32 * j < k) from_float(sums[j] / total, row[lane + 32 * j]);
}

#define ENTRY(T, type)                                                   \
    KERNEL(256, 1) ddt_attention_plain_##type(ATTENTION_PARAMETERS(T)) { \
        attention_plain<T>(ATTENTION_VALUES);                            \
    }                                                                    \
    REGISTER(ddt_attention_plain_##type)

ENTRY(bf16, bf16)
ENTRY(float, f32)

#undef ENTRY
#undef ATTENTION_PARAMETERS
#undef ATTENTION_VALUES

}  // namespace ddt
