// Attention on tensor cores. A block takes the queries of 4 or 8 warps of one head. Keys are normed and turned
// on their way into shared memory, which holds up to 256 keys and values (all of them at 256 px); queries on
// their way into registers. A warp meets 64 or 32 keys at a time, as its registers allow, with an online softmax.
//
// Head sizes are multiples of 8: 72 is four steps of 16 and one of 8 along the head, and nine tiles of 8
// across the result, with no padding.
#include "device.h"

namespace ddt {

// log2(e): the softmax is computed in powers of 2.
constexpr float LOG2_E = 1.4426950408889634f;

// Norms, weights and turns 8 neighbours of a row whose inverse root mean square is known.
DEVICE Sixteen turned(const float *x, const bf16 *weight, const float *turns, float inverse) {
    float w[8], t[8];
    load8(weight, w);
    load8(turns, t);
    Sixteen result;
    UNROLL for (int pair = 0; pair < 4; pair++) {
        float re = x[2 * pair] * inverse * w[2 * pair], im = x[2 * pair + 1] * inverse * w[2 * pair + 1];
        float cos = t[2 * pair], sin = t[2 * pair + 1];
        result.words[pair] = pack(re * cos - im * sin, re * sin + im * cos);
    }
    return result;
}

// Keys and values of a chunk into shared memory, by the whole block; zeros beyond the last token.
template <int K, int THREADS>
DEVICE void load_chunk(const bf16 *RESTRICT qkv, const bf16 *RESTRICT k_weight, const float *RESTRICT rope,
                       bf16 *keys, bf16 *values, int count, unsigned base, unsigned tokens, unsigned heads,
                       float eps) {
    constexpr int PARTS = K / 8, STRIDE = key_stride(K), MINE = (PARTS + 3) / 4;
    unsigned long long first = (unsigned long long)blockIdx.z * tokens;
    // Values as they are: on their way while keys are computed.
    for (int i = threadIdx.x; i < count * PARTS; i += THREADS) {
        int r = i / PARTS, part = i % PARTS;
        bool there = base + r < tokens;
        unsigned token = there ? base + r : tokens - 1;
        copy16(values + r * STRIDE + 8 * part, qkv + qkv_at(first + token, 2, blockIdx.y, heads, K) + 8 * part, there);
    }
    // Keys: 4 lanes a row, each with every fourth part of 16 bytes.
    int mine = threadIdx.x % 4;
    UNROLL for (int r = threadIdx.x / 4; r < count; r += THREADS / 4) {
        bool there = base + r < tokens;
        unsigned token = there ? base + r : tokens - 1;
        const bf16 *row = qkv + qkv_at(first + token, 1, blockIdx.y, heads, K);
        float x[MINE][8], squares = 0.0f;
        UNROLL for (int j = 0; j < MINE; j++) {
            int part = mine + 4 * j;
            if (part >= PARTS) continue;
            load8(row + 8 * part, x[j]);
            UNROLL for (int i = 0; i < 8; i++) squares = fmaf(x[j][i], x[j][i], squares);
        }
        float inverse = rsqrtf(quad_sum(squares) * (1.0f / K) + eps);
        UNROLL for (int j = 0; j < MINE; j++) {
            int part = mine + 4 * j;
            if (part >= PARTS) continue;
            Sixteen result = turned(x[j], k_weight + 8 * part, rope + (size_t)token * K + 8 * part, inverse);
            if (!there) result = Sixteen{};
            store16(keys + r * STRIDE + 8 * part, result);
        }
    }
    copies_wait();
}

// Two neighbours of a query, normed, weighted, turned and scaled.
DEVICE unsigned turned_pair(unsigned raw, unsigned weight, const float *turn, float inverse) {
    float re = low(raw) * inverse * low(weight), im = high(raw) * inverse * high(weight);
    return pack(re * turn[0] - im * turn[1], re * turn[1] + im * turn[0]);
}

// 16 queries from `row0` as fragments; zeros beyond the last token. `f` has 4 registers for each step of 16
// and 2 for one of 8.
template <int K>
DEVICE void load_queries(const bf16 *RESTRICT qkv, const bf16 *RESTRICT q_weight, const float *RESTRICT rope,
                         unsigned *f, unsigned row0, unsigned tokens, unsigned heads, float eps) {
    constexpr int REGISTERS = K / 8 * 2;
    int lane = threadIdx.x % 32;
    unsigned long long first = (unsigned long long)blockIdx.z * tokens;
    UNROLL for (int half = 0; half < 2; half++) {
        unsigned token = row0 + a_row(lane, half);
        bool there = token < tokens;
        if (!there) token = tokens - 1;
        const bf16 *row = qkv + qkv_at(first + token, 0, blockIdx.y, heads, K);
        float squares = 0.0f;
        UNROLL for (int i = half; i < REGISTERS; i += 2) {
            f[i] = *(const unsigned *)(row + i / 4 * 16 + a_column(lane, i % 4));
            squares = fmaf(low(f[i]), low(f[i]), squares);
            squares = fmaf(high(f[i]), high(f[i]), squares);
        }
        float inverse = rsqrtf(quad_sum(squares) * (1.0f / K) + eps) * (LOG2_E / sqrtf((float)K));
        UNROLL for (int i = half; i < REGISTERS; i += 2) {
            int column = i / 4 * 16 + a_column(lane, i % 4);
            unsigned weight = *(const unsigned *)(q_weight + column);
            f[i] = turned_pair(f[i], weight, rope + (size_t)token * K + column, inverse);
            if (!there) f[i] = 0;
        }
    }
}

// Scores of 16 MT queries with BLOCK keys from `keys`.
template <int K, int MT, int BLOCK>
DEVICE void scores(const unsigned (*queries)[K / 8 * 2], const bf16 *keys, float (*s)[BLOCK / 8][4]) {
    constexpr int STRIDE = key_stride(K), STEPS = K / 16;
    int lane = threadIdx.x % 32;
    UNROLL for (int m = 0; m < MT; m++)
        UNROLL for (int tile = 0; tile < BLOCK / 8; tile++)
            UNROLL for (int i = 0; i < 4; i++) s[m][tile][i] = 0.0f;
    const bf16 *at = keys + keys_row(lane) * STRIDE + keys_column(lane);
    UNROLL for (int tile = 0; tile < BLOCK / 8; tile += 2) {
        UNROLL for (int step = 0; step < STEPS; step++) {
            unsigned b[4];
            ldmatrix4(b, at + 8 * tile * STRIDE + 16 * step);
            UNROLL for (int m = 0; m < MT; m++) {
                mma16(s[m][tile], queries[m] + 4 * step, b);
                mma16(s[m][tile + 1], queries[m] + 4 * step, b + 2);
            }
        }
    }
    if (K % 16 != 0) {
        const bf16 *tail = keys + tail_row(lane) * STRIDE + 16 * STEPS;
        UNROLL for (int tile = 0; tile < BLOCK / 8; tile += 4) {
            unsigned b[4];
            ldmatrix4(b, tail + 8 * tile * STRIDE);
            UNROLL for (int m = 0; m < MT; m++)
                UNROLL for (int j = 0; j < 4; j++) mma8(s[m][tile + j], queries[m] + 4 * STEPS, b + j);
        }
    }
}

// From scores to weights, with what was summed before scaled to the new maximum. `most` and `total` are those
// of rows c_row(lane, 0) and c_row(lane, 2); `total` is this lane's share.
template <int K, int BLOCK>
DEVICE void softmax(float (*s)[4], float (*sums)[4], float *most, float *total, unsigned there) {
    int lane = threadIdx.x % 32;
    if (there < BLOCK) {
        UNROLL for (int tile = 0; tile < BLOCK / 8; tile++)
            UNROLL for (int i = 0; i < 4; i++)
                if (unsigned(8 * tile + c_column(lane, i)) >= there) s[tile][i] = -INFINITY;
    }
    UNROLL for (int half = 0; half < 2; half++) {
        float larger = most[half];
        UNROLL for (int tile = 0; tile < BLOCK / 8; tile++)
            larger = fmaxf(larger, fmaxf(s[tile][2 * half], s[tile][2 * half + 1]));
        larger = quad_max(larger);
        float keep = exp2_fast(most[half] - larger), sum = 0.0f;
        most[half] = larger;
        UNROLL for (int tile = 0; tile < BLOCK / 8; tile++)
            UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[tile][i] = exp2_fast(s[tile][i] - larger);
                sum += s[tile][i];
            }
        total[half] = fmaf(total[half], keep, sum);
        UNROLL for (int tile = 0; tile < K / 8; tile++)
            UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) sums[tile][i] *= keep;
    }
}

// Adds the values of BLOCK keys, by their weights. The result of one GEMM is an operand of the next: tiles
// 2 j and 2 j + 1 of the weights are the registers of 16 keys.
template <int K, int MT, int BLOCK>
DEVICE void add_values(const float (*s)[BLOCK / 8][4], const bf16 *values, float (*sums)[K / 8][4]) {
    constexpr int STRIDE = key_stride(K), TILES = K / 8;
    int lane = threadIdx.x % 32;
    const bf16 *at = values + values_row(lane) * STRIDE + values_column(lane);
    const bf16 *last = values + values_row(lane) * STRIDE + 8 * (TILES - 1);
    UNROLL for (int step = 0; step < BLOCK / 16; step++) {
        unsigned a[MT][4];
        UNROLL for (int m = 0; m < MT; m++)
            UNROLL for (int i = 0; i < 4; i++) {
                const float *two = s[m][2 * step + i / 2] + i % 2 * 2;
                a[m][i] = pack(two[0], two[1]);
            }
        UNROLL for (int tile = 0; tile + 1 < TILES; tile += 2) {
            unsigned b[4];
            ldmatrix4_transposed(b, at + 16 * step * STRIDE + 8 * tile);
            UNROLL for (int m = 0; m < MT; m++) {
                mma16(sums[m][tile], a[m], b);
                mma16(sums[m][tile + 1], a[m], b + 2);
            }
        }
        if (TILES % 2 == 1) {
            unsigned b[2];
            ldmatrix2_transposed(b, last + 16 * step * STRIDE);
            UNROLL for (int m = 0; m < MT; m++) mma16(sums[m][TILES - 1], a[m], b);
        }
    }
}

#define ATTENTION_PARAMETERS                                                                              \
    const bf16 *RESTRICT qkv, const bf16 *RESTRICT q_weight, const bf16 *RESTRICT k_weight,               \
        const float *RESTRICT rope, bf16 *RESTRICT out, unsigned tokens, unsigned heads, unsigned head_dim, \
        float eps
#define ATTENTION_VALUES qkv, q_weight, k_weight, rope, out, tokens, heads, eps

// MT tiles of 16 queries a warp, which meets BLOCK keys at a time.
template <int K, int MT, int WARPS, int BLOCK>
DEVICE void attention(const bf16 *RESTRICT qkv, const bf16 *RESTRICT q_weight, const bf16 *RESTRICT k_weight,
                      const float *RESTRICT rope, bf16 *RESTRICT out, unsigned tokens, unsigned heads, float eps) {
    constexpr int TILES = K / 8, STRIDE = key_stride(K), CHUNK = chunk_keys(K);
    SHARED_REST(shared);
    // As many as the launch has room for: all tokens, or a chunk.
    unsigned rounded = (tokens + 63) / 64 * 64;
    int count = rounded < (unsigned)CHUNK ? (int)rounded : CHUNK;
    bf16 *keys = (bf16 *)shared, *values = keys + count * STRIDE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned row0 = (blockIdx.x * WARPS + warp) * (16 * MT);

    unsigned queries[MT][TILES * 2];
    float sums[MT][TILES][4], most[MT][2], total[MT][2];
    UNROLL for (int m = 0; m < MT; m++) {
        UNROLL for (int tile = 0; tile < TILES; tile++)
            UNROLL for (int i = 0; i < 4; i++) sums[m][tile][i] = 0.0f;
        UNROLL for (int half = 0; half < 2; half++) {
            most[m][half] = -INFINITY;
            total[m][half] = 0.0f;
        }
    }
    for (unsigned base = 0; base < tokens; base += CHUNK) {
        // Nobody still reads the chunk before.
        if (base > 0) barrier();
        load_chunk<K, 32 * WARPS>(qkv, k_weight, rope, keys, values, count, base, tokens, heads, eps);
        if (base == 0) {
            UNROLL for (int m = 0; m < MT; m++)
                load_queries<K>(qkv, q_weight, rope, queries[m], row0 + 16 * m, tokens, heads, eps);
        }
        barrier();
        for (int key = 0; key < count && base + key < tokens; key += BLOCK) {
            float s[MT][BLOCK / 8][4];
            scores<K, MT, BLOCK>(queries, keys + key * STRIDE, s);
            UNROLL for (int m = 0; m < MT; m++)
                softmax<K, BLOCK>(s[m], sums[m], most[m], total[m], tokens - base - key);
            add_values<K, MT, BLOCK>(s, values + key * STRIDE, sums);
        }
    }
    UNROLL for (int m = 0; m < MT; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            float inverse = 1.0f / quad_sum(total[m][half]);
            unsigned token = row0 + 16 * m + c_row(lane, 2 * half);
            if (token >= tokens) continue;
            bf16 *row = out + (((unsigned long long)blockIdx.z * tokens + token) * heads + blockIdx.y) * K;
            UNROLL for (int tile = 0; tile < TILES; tile++) {
                const float *two = sums[m][tile] + 2 * half;
                *(unsigned *)(row + 8 * tile + c_column(lane, 0)) = pack(two[0] * inverse, two[1] * inverse);
            }
        }
}

// Two blocks share a multiprocessor where registers allow it without spilling.
#define ENTRY(name, k, tiles, warps, block)                                                \
    KERNEL(32 * warps, warps == 4 || k <= 64 ? 2 : 1) ddt_attention_##name(ATTENTION_PARAMETERS) {       \
        attention<k, tiles, warps, block>(ATTENTION_VALUES);                               \
    }                                                                                      \
    REGISTER(ddt_attention_##name)

ENTRY(8, 8, 1, 8, 64)
ENTRY(16, 16, 1, 8, 64)
ENTRY(24, 24, 1, 8, 64)
ENTRY(32, 32, 1, 8, 64)
ENTRY(40, 40, 1, 8, 64)
ENTRY(48, 48, 1, 8, 64)
ENTRY(56, 56, 1, 8, 32)
ENTRY(64, 64, 1, 8, 32)
ENTRY(72, 72, 1, 8, 32)
ENTRY(80, 80, 1, 8, 32)
ENTRY(88, 88, 1, 8, 32)
ENTRY(96, 96, 1, 8, 32)
ENTRY(104, 104, 1, 8, 32)
ENTRY(112, 112, 1, 8, 32)
ENTRY(120, 120, 1, 8, 32)
ENTRY(128, 128, 1, 8, 32)
ENTRY(wide_64, 64, 2, 4, 64)
ENTRY(wide_72, 72, 2, 4, 64)
ENTRY(small_64, 64, 1, 4, 64)
ENTRY(small_72, 72, 1, 4, 64)

#undef ENTRY
#undef ATTENTION_PARAMETERS
#undef ATTENTION_VALUES

}  // namespace ddt
