// Logarithm of float32 vectors.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// log10 of positive normal numbers, to 2e-7 of the larger of 1 and its magnitude; about -38 for 0
// and subnormal ones.
AFNEXT_INLINE F32 log10(F32 x) {
  // x = m * 2**e with m in [sqrt(1/2), sqrt(2)); polynomial of Cephes' logf (S. Moshier).
  constexpr int32_t root_half = 0x3f3504f3;
  const I32 offset = bit_cast<I32>(x) - root_half;
  const F32 e = __builtin_convertvector(offset >> 23, F32);
  const F32 t = bit_cast<F32>((offset & 0x7fffff) + root_half) - 1.0f;
  F32 p = fma(broadcast(7.0376836292e-2f), t, broadcast(-1.1514610310e-1f));
  p = fma(p, t, broadcast(1.1676998740e-1f));
  p = fma(p, t, broadcast(-1.2420140846e-1f));
  p = fma(p, t, broadcast(1.4249322787e-1f));
  p = fma(p, t, broadcast(-1.6668057665e-1f));
  p = fma(p, t, broadcast(2.0000714765e-1f));
  p = fma(p, t, broadcast(-2.4999993993e-1f));
  p = fma(p, t, broadcast(3.3333331174e-1f));
  p = fma(p, t, broadcast(-0.5f));
  const F32 natural = fma(p, t * t, t);
  return fma(e, broadcast(0.301029996f), natural * 0.434294482f);
}

}  // namespace afnext::cpu::AFNEXT_ISA
