// Sine and cosine of phases that may be large: reduced in double, evaluated in float32.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

typedef int64_t I64 __attribute__((vector_size(kLanes * 8)));

struct SinCos {
  F32 sin, cos;
};

// Within 2e-7 of the exact values for |phase| <= kMaxPhase; NaN for NaN and infinity.
constexpr double kMaxPhase = 34359738368.0;  // 2**35

AFNEXT_INLINE SinCos sincos(F64 phase) {
  // pi / 2 = high + low with 18 bits in high, so that n * high is exact up to kMaxPhase, also on
  // machines without fused multiply-add.
  constexpr double high = 0x1.921f8p+0, low = 0x1.aa22168c234c5p-19;
  constexpr double shifter = 6755399441055744.0;  // 1.5 * 2**52: adding it rounds to an integer
  const F64 shifted = phase * 0x1.45f306dc9c883p-1 + shifter;
  const F64 n = shifted - shifter;
  const F32 r = __builtin_convertvector((phase - n * high) - n * low, F32);
  const I32 quadrant = __builtin_convertvector(bit_cast<I64>(shifted), I32);

  // Polynomials of Cephes' sinf and cosf (S. Moshier) on [-pi/4, pi/4].
  const F32 r2 = r * r;
  F32 s = fma(broadcast(-1.9515295891e-4f), r2, broadcast(8.3321608736e-3f));
  s = fma(s, r2, broadcast(-1.6666654611e-1f));
  s = fma(s * r2, r, r);
  F32 c = fma(broadcast(2.443315711809948e-5f), r2, broadcast(-1.388731625493765e-3f));
  c = fma(c, r2, broadcast(4.166664568298827e-2f));
  c = fma(c, r2, broadcast(-0.5f));
  c = fma(c, r2, broadcast(1.0f));

  const I32 swap = (quadrant & 1) != 0;
  const I32 sin_sign = (quadrant & 2) << 30, cos_sign = ((quadrant + 1) & 2) << 30;
  return {bit_cast<F32>(bit_cast<I32>(select(swap, c, s)) ^ sin_sign),
          bit_cast<F32>(bit_cast<I32>(select(swap, s, c)) ^ cos_sign)};
}

// cos and sin [count] of time * inv_freq[i] for one token: the product of two float32 is exact in
// double. Phases beyond kMaxPhase go through the C library, which reduces any argument exactly.
AFNEXT_INLINE void sincos_row(float time, const float* inv_freq, int64_t count, float* cos,
                              float* sin) {
  const double t = time;
  F32 extent{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    const F32 f = n == kLanes ? load(inv_freq + i) : load_n(inv_freq + i, n);
    extent = max(max(f, -f), extent);  // in this order a NaN is passed over
    const SinCos turn = sincos(__builtin_convertvector(f, F64) * t);
    if (n == kLanes) {
      store(cos + i, turn.cos);
      store(sin + i, turn.sin);
    } else {
      store_n(cos + i, turn.cos, n);
      store_n(sin + i, turn.sin, n);
    }
  }
  if (largest(extent) * (t < 0 ? -t : t) > kMaxPhase) [[unlikely]] {
    for (int64_t i = 0; i < count; ++i) {
      cos[i] = static_cast<float>(__builtin_cos(t * inv_freq[i]));
      sin[i] = static_cast<float>(__builtin_sin(t * inv_freq[i]));
    }
  }
}

// The same for angles given as they are.
AFNEXT_INLINE void sincos_row(const float* angles, int64_t count, float* cos, float* sin) {
  sincos_row(1.0f, angles, count, cos, sin);
}

}  // namespace afnext::cpu::AFNEXT_ISA
