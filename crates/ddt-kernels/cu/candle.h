// What CUDA's headers declare and candle's kernels use, for the C++ compiler: their sources run in the emulation too.
//
// Arithmetic on 16-bit floats is that of f32, rounded after each operation. FP8 is only declared: nothing here uses it.
#pragma once

#include "emulate.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#define __global__
#define __host__
#define __device__ inline
#define __forceinline__
#define __shared__ static thread_local
#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

// --- Numbers of 16 bits -----------------------------------------------------------------------------------

struct Bf16Bits {
    static uint16_t of(float value) { return emulate::bf16_bits(value); }
    static float value(uint16_t bits) { return emulate::bf16_value(bits); }
};
struct F16Bits {
    static uint16_t of(float value) {
        _Float16 narrow = (_Float16)value;
        uint16_t bits;
        memcpy(&bits, &narrow, 2);
        return bits;
    }
    static float value(uint16_t bits) {
        _Float16 narrow;
        memcpy(&narrow, &bits, 2);
        return (float)narrow;
    }
};

template <class Bits> struct Narrow {
    uint16_t bits;
    Narrow() = default;
    template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>> Narrow(N value) : bits(Bits::of((float)value)) {}
    operator float() const { return Bits::value(bits); }

    friend Narrow operator+(Narrow a, Narrow b) { return (float)a + (float)b; }
    friend Narrow operator-(Narrow a, Narrow b) { return (float)a - (float)b; }
    friend Narrow operator*(Narrow a, Narrow b) { return (float)a * (float)b; }
    friend Narrow operator/(Narrow a, Narrow b) { return (float)a / (float)b; }
    friend Narrow operator-(Narrow a) { return -(float)a; }
    friend bool operator==(Narrow a, Narrow b) { return (float)a == (float)b; }
    friend bool operator!=(Narrow a, Narrow b) { return (float)a != (float)b; }
    friend bool operator<(Narrow a, Narrow b) { return (float)a < (float)b; }
    friend bool operator<=(Narrow a, Narrow b) { return (float)a <= (float)b; }
    friend bool operator>(Narrow a, Narrow b) { return (float)a > (float)b; }
    friend bool operator>=(Narrow a, Narrow b) { return (float)a >= (float)b; }
    Narrow &operator+=(Narrow other) { return *this = *this + other; }
    Narrow &operator*=(Narrow other) { return *this = *this * other; }

    friend bool __hisnan(Narrow a) { return std::isnan((float)a); }
    friend Narrow hsqrt(Narrow a) { return sqrtf(a); }
    friend Narrow hcos(Narrow a) { return cosf(a); }
    friend Narrow hsin(Narrow a) { return sinf(a); }
    friend Narrow hlog(Narrow a) { return logf(a); }
    friend Narrow hexp(Narrow a) { return expf(a); }
    friend Narrow __habs(Narrow a) { return fabsf(a); }
    friend Narrow __hmax_nan(Narrow a, Narrow b) { return __hisnan(a) || __hisnan(b) ? Narrow(NAN) : a > b ? a : b; }
    friend Narrow __hmin_nan(Narrow a, Narrow b) { return __hisnan(a) || __hisnan(b) ? Narrow(NAN) : a < b ? a : b; }
};

typedef Narrow<Bf16Bits> __nv_bfloat16;
typedef Narrow<F16Bits> __half;

inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return a; }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half a;
    a.bits = bits;
    return a;
}

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }

constexpr int __NV_E4M3 = 0;
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float) { abort(); }
};
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { abort(); }

// --- Words and vectors ------------------------------------------------------------------------------------

template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
inline float __uint_as_float(unsigned a) { return same_bits<float>(a); }
inline unsigned __float_as_uint(float a) { return same_bits<unsigned>(a); }
inline float __int_as_float(int a) { return same_bits<float>(a); }
inline int __float_as_int(float a) { return same_bits<int>(a); }
inline double __longlong_as_double(long long a) { return same_bits<double>(a); }
inline long long __double_as_longlong(double a) { return same_bits<long long>(a); }

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

// --- Functions --------------------------------------------------------------------------------------------

template <class A, class B> auto min(A a, B b) {
    using Both = std::common_type_t<A, B>;
    return std::min<Both>(a, b);
}
template <class A, class B> auto max(A a, B b) {
    using Both = std::common_type_t<A, B>;
    return std::max<Both>(a, b);
}
inline float normcdff(float a) { return 0.5f * erfcf(-a * (float)M_SQRT1_2); }
inline double normcdf(double a) { return 0.5 * erfc(-a * M_SQRT1_2); }
using std::isnan;
using std::signbit;
namespace cuda::std {
using ::std::numeric_limits;
}

// Threads run in turn, so these need no more.
template <class T, class F> T exchanged(T *at, F next) {
    T old = *at;
    *at = next(old);
    return old;
}
template <class T, class V> T atomicAdd(T *at, V value) {
    return exchanged(at, [=](T old) { return old + (T)value; });
}
template <class T, class V> T atomicMin(T *at, V value) {
    return exchanged(at, [=](T old) { return std::min(old, (T)value); });
}
template <class T, class V> T atomicMax(T *at, V value) {
    return exchanged(at, [=](T old) { return std::max(old, (T)value); });
}
template <class T, class V, class W> T atomicCAS(T *at, V expected, W value) {
    return exchanged(at, [=](T old) { return old == (T)expected ? (T)value : old; });
}

// --- A block and a warp -----------------------------------------------------------------------------------

inline void __syncthreads() { emulate::barrier(); }
// Of f32 and what f32 holds.
template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    return (T)emulate::shuffle_xor((float)value, mask);
}
