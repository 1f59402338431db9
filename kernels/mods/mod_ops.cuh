// The operations of a mod's graph in a kernel: the definition of kernels/mods/scalar.cpp, bit for
// bit except exp, log and tanh, which CUDA rounds in its own way (2 units in the last place), and
// NearMath.
//
// Sums and products use functions that round after each one: the compiler may not fuse a product
// into a sum, which would make a score, and perhaps the mask, differ from the CPU's.
#pragma once

#include "kernels/mods/mod_buffers.hpp"

namespace kvmesh::mod_ops {

// ---- Integers: sums and products wrap, so they are computed unsigned ----

__device__ __forceinline__ int add(int a, int b) { return int(unsigned(a) + unsigned(b)); }
__device__ __forceinline__ int subtract(int a, int b) { return int(unsigned(a) - unsigned(b)); }
__device__ __forceinline__ int multiply(int a, int b) { return int(unsigned(a) * unsigned(b)); }
__device__ __forceinline__ int negate(int a) { return int(0u - unsigned(a)); }
__device__ __forceinline__ int abs(int a) { return a < 0 ? negate(a) : a; }
__device__ __forceinline__ int min(int a, int b) { return b < a ? b : a; }
__device__ __forceinline__ int max(int a, int b) { return a < b ? b : a; }
// The lowest int has no positive twin, so the hardware does not divide by -1.
__device__ __forceinline__ int divide(int a, int b) {
  return b == -1 ? negate(a) : b == 0 ? 0 : a / b;
}
__device__ __forceinline__ int modulo(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }

// ---- Floats ----

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float negate(float a) { return -a; }
__device__ __forceinline__ float abs(float a) { return fabsf(a); }
// The result is defined if one operand is NaN, or if both are zeros of different signs; fminf's is
// not.
__device__ __forceinline__ float min(float a, float b) { return b < a ? b : a; }
__device__ __forceinline__ float max(float a, float b) { return a < b ? b : a; }
__device__ __forceinline__ float square_root(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ float exponential(float a) { return expf(a); }
__device__ __forceinline__ float logarithm(float a) { return logf(a); }
__device__ __forceinline__ float hyperbolic_tangent(float a) { return tanhf(a); }

// ---- Conversions ----

__device__ __forceinline__ float to_float(int a) { return __int2float_rn(a); }
__device__ __forceinline__ float to_float(bool a) { return a ? 1.0f : 0.0f; }
// The instruction saturates, and turns NaN into 0.
__device__ __forceinline__ int to_int(float a) { return __float2int_rz(a); }
__device__ __forceinline__ int to_int(bool a) { return a ? 1 : 0; }

// ---- Operations that a kernel may compute in its own way ----
//
// Quotients by constants, and soft caps factor * tanh(a / divisor), all constants being from 1 to
// 2^24; sums of a product; the distance of a key from a query.

struct RoundedMath {
  __device__ __forceinline__ static float quotient(float a, float b) { return divide(a, b); }
  __device__ __forceinline__ static float soft_cap(float a, float divisor, float factor) {
    return multiply(factor, hyperbolic_tangent(divide(a, divisor)));
  }
  __device__ __forceinline__ static float product_sum(float a, float b, float c) {
    return add(multiply(a, b), c);
  }
  __device__ __forceinline__ static float distance(int kv, int q) {
    return to_float(subtract(kv, q));
  }
};

// Tests on a host bring their own two.
#ifdef __CUDACC__
/// 2^a and 1 / a, relative error 2^-22; subnormal results are 0.
__device__ __forceinline__ float near_power_of_two(float a) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(a));
  return power;
}
__device__ __forceinline__ float near_reciprocal(float a) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(a));
  return reciprocal;
}
#endif

/// A key's position, as that of another one and a small number. Where a loop is unrolled over the
/// latter, what depends on the former alone is computed once.
struct KeyPlace {
  int first;
  int further;
  __device__ __forceinline__ operator int() const { return add(first, further); }
};

/// A soft cap's result, where a kernel computes it before the mod.
struct CappedScore {
  float value;
};

/// factor * tanh(scale * a / divisor) without special functions, for small a: an odd polynomial of
/// least relative error, 2^-20 where |scale * a / divisor| <= kMost.
class SmallCap {
 public:
  /// Whether the terms are normal numbers: of 2^-16 the last is about 2^-112, of 2^12 about 2^84
  /// times the factor, which is 2^24 at the most.
  __device__ __forceinline__ static bool takes(float scale, float divisor) {
    const float step = fabsf(scale / divisor);
    return step >= 0x1p-16f && step <= 0x1p12f;
  }
  static constexpr float kMost = 0.5f;

  __device__ __forceinline__ SmallCap(float scale, float divisor, float factor) {
    const float step = scale / divisor;
    float power = step * factor;
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
      terms_[i] = power * of_tanh(i);
      power *= step * step;
    }
  }

  /// Caps N numbers, step by step, since each step waits for the one before.
  template <int N>
  __device__ __forceinline__ void apply(float* a) const {
    float square[N], sum[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      square[n] = __fmul_rn(a[n], a[n]);
      sum[n] = terms_[kTerms - 1];
    }
#pragma unroll
    for (int i = kTerms - 2; i >= 0; --i) {
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = __fmaf_rn(sum[n], square[n], terms_[i]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) a[n] = __fmul_rn(a[n], sum[n]);
  }

 private:
  static constexpr int kTerms = 4;
  /// The terms of tanh x = x * (term 0 + term 1 * x^2 + ...), by Remez' algorithm.
  __device__ __forceinline__ static constexpr float of_tanh(int i) {
    constexpr float kOfTanh[kTerms] = {0.99999946f, -0.33326319f, 0.13190296f, -0.044402227f};
    return kOfTanh[i];
  }

  float terms_[kTerms];
};

/// Without branches, between which no two scores overlap; that takes registers.
struct NearMath {
  /// The product with the rounded reciprocal, corrected by the remainder, is the rounded quotient
  /// where the remainder is exact (Markstein, "Computation of elementary functions on the IBM RISC
  /// System/6000", 1990). That is down to 2^-100; below, it is the next number at most. The
  /// negative remainder keeps the sign of zeros.
  __device__ __forceinline__ static float quotient(float a, float b) {
    const float reciprocal = 1.0f / b;
    const float near = __fmul_rn(a, reciprocal);
    const float quotient = __fmaf_rn(__fmaf_rn(near, b, -a), -reciprocal, near);
    return fabsf(near) <= 3.402823466e38f ? quotient : near;  // infinite: it has no remainder
  }

  /// tanh x = 1 - 2 / (1 + e^2x), within 2^-21 of 1: a fifth of tanhf's instructions. The products
  /// of a score's 16-bit or float8 numbers are rounded more coarsely.
  __device__ __forceinline__ static float soft_cap(float a, float divisor, float factor) {
    return scaled_soft_cap(a, 1.0f, divisor, factor);
  }
  __device__ __forceinline__ static float soft_cap(CappedScore cap, float /*divisor*/,
                                                   float /*factor*/) {
    return cap.value;
  }
  /// The soft cap of scale * a.
  __device__ __forceinline__ static float scaled_soft_cap(float a, float scale, float divisor,
                                                          float factor) {
    const float power = near_power_of_two(__fmul_rn(a, scale * (2.8853900817779268f / divisor)));
    return __fmaf_rn(near_reciprocal(__fadd_rn(1.0f, power)), -2.0f * factor, factor);
  }

  /// Rounded once.
  __device__ __forceinline__ static float product_sum(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
  }

  __device__ __forceinline__ static float distance(int kv, int q) {
    return RoundedMath::distance(kv, q);
  }
  /// Exact below 2^24, else rounded twice.
  __device__ __forceinline__ static float distance(KeyPlace kv, int q) {
    const float first = distance(kv.first, q);
    return kv.further == 0 ? first : __fadd_rn(first, to_float(kv.further));
  }
};

// ---- Loads: the index is clamped into the buffer ----

template <class T>
__device__ __forceinline__ T load(const ModBufferView& buffer, int index) {
  return static_cast<const T*>(buffer.data)[max(0, min(index, buffer.size - 1))];
}
__device__ __forceinline__ float load_float(const ModBufferView& buffer, int index) {
  return load<float>(buffer, index);
}
__device__ __forceinline__ int load_int(const ModBufferView& buffer, int index) {
  return load<int>(buffer, index);
}
__device__ __forceinline__ bool load_bool(const ModBufferView& buffer, int index) {
  return load<unsigned char>(buffer, index) != 0;
}

}  // namespace kvmesh::mod_ops
