// Common parts of the kernels: element types, 16-byte reads and writes, and the instructions of a warp.
#pragma once

#ifndef __CUDACC__
#include "emulate.h"
#endif
#include "index.h"

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define REGISTER(kernel)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SHARED_REST(name) extern __shared__ __align__(16) unsigned char name[]
#define UNROLL _Pragma("unroll")
#define RESTRICT __restrict__
#endif

namespace ddt {

struct bf16 {
    unsigned short bits;
};

struct alignas(16) Sixteen {
    unsigned words[4];
};

DEVICE float as_float(unsigned bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, 4);
    return value;
#endif
}

DEVICE float low(unsigned pair) { return as_float(pair << 16); }
DEVICE float high(unsigned pair) { return as_float(pair & 0xFFFF0000u); }

// Both rounded to nearest, ties to even; `first` in the low half, which comes first in memory.
DEVICE unsigned pack(float first, float second) {
#ifdef __CUDACC__
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return emulate::bf16_bits(first) | unsigned(emulate::bf16_bits(second)) << 16;
#endif
}

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(bf16 value) { return as_float(unsigned(value.bits) << 16); }

DEVICE void from_float(float value, float &to) { to = value; }
DEVICE void from_float(float value, bf16 &to) { to.bits = (unsigned short)(pack(value, 0.0f) & 0xFFFFu); }

DEVICE Sixteen load16(const void *from) { return *(const Sixteen *)from; }
DEVICE void store16(void *to, Sixteen value) { *(Sixteen *)to = value; }

// Eight neighbours, at a multiple of 16 bytes.
DEVICE void load8(const bf16 *from, float *to) {
    Sixteen raw = load16(from);
    UNROLL for (int i = 0; i < 4; i++) {
        to[2 * i] = low(raw.words[i]);
        to[2 * i + 1] = high(raw.words[i]);
    }
}
DEVICE void load8(const float *from, float *to) {
    UNROLL for (int half = 0; half < 2; half++) {
        Sixteen raw = load16(from + 4 * half);
        UNROLL for (int i = 0; i < 4; i++) to[4 * half + i] = as_float(raw.words[i]);
    }
}
DEVICE void store8(bf16 *to, const float *from) {
    Sixteen raw;
    UNROLL for (int i = 0; i < 4; i++) raw.words[i] = pack(from[2 * i], from[2 * i + 1]);
    store16(to, raw);
}
DEVICE void store8(float *to, const float *from) {
    UNROLL for (int half = 0; half < 2; half++) {
        Sixteen raw;
        memcpy(raw.words, from + 4 * half, 16);
        store16(to + 4 * half, raw);
    }
}

// Elements in 16 bytes, and as many neighbours at once.
template <class T> struct Lanes;
template <> struct Lanes<bf16> {
    static constexpr int COUNT = 8;
};
template <> struct Lanes<float> {
    static constexpr int COUNT = 4;
};
DEVICE void load_lanes(const bf16 *from, float *to) { load8(from, to); }
DEVICE void load_lanes(const float *from, float *to) {
    Sixteen raw = load16(from);
    UNROLL for (int i = 0; i < 4; i++) to[i] = as_float(raw.words[i]);
}
DEVICE void store_lanes(bf16 *to, const float *from) { store8(to, from); }
DEVICE void store_lanes(float *to, const float *from) {
    Sixteen raw;
    memcpy(raw.words, from, 16);
    store16(to, raw);
}

DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

// The item of a kernel that gives every thread one: grids have fewer than 2^32 threads.
DEVICE unsigned item() { return blockIdx.x * blockDim.x + threadIdx.x; }

#ifdef __CUDACC__

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
DEVICE void barrier() { __syncthreads(); }

// 2^x, 0 for -inf; results below the smallest normal number are 0.
DEVICE float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

DEVICE unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

// 16 bytes from global to shared memory, or zeros; done when `copies_wait` is.
DEVICE void copy16(void *to, const void *from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
DEVICE void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DEVICE void ldmatrix4(unsigned *to, const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix4_transposed(unsigned *to, const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix2_transposed(unsigned *to, const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b, a of 16 x 16, b of 16 x 8.
DEVICE void mma16(float *c, const unsigned *a, const unsigned *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a b, a of 16 x 8, b of 8 x 8.
DEVICE void mma8(float *c, const unsigned *a, const unsigned *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

#else
using emulate::barrier;
using emulate::copies_wait;
using emulate::copy16;
using emulate::exp2_fast;
using emulate::shuffle;
using emulate::shuffle_xor;

DEVICE void ldmatrix4(unsigned *to, const bf16 *row) { emulate::ldmatrix(to, row, 4, false); }
DEVICE void ldmatrix4_transposed(unsigned *to, const bf16 *row) { emulate::ldmatrix(to, row, 4, true); }
DEVICE void ldmatrix2_transposed(unsigned *to, const bf16 *row) { emulate::ldmatrix(to, row, 2, true); }
DEVICE void mma16(float *c, const unsigned *a, const unsigned *b) { emulate::mma(c, a, b, 16); }
DEVICE void mma8(float *c, const unsigned *a, const unsigned *b) { emulate::mma(c, a, b, 8); }
#endif

DEVICE float warp_sum(float value) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
DEVICE float warp_max(float value) {
    UNROLL for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}
// Over the 4 lanes that share the rows of a fragment.
DEVICE float quad_sum(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}
DEVICE float quad_max(float value) {
    value = fmaxf(value, shuffle_xor(value, 1));
    return fmaxf(value, shuffle_xor(value, 2));
}

}  // namespace ddt
