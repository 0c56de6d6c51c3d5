// Logarithm of float32 vectors.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// log10 of positive normal numbers, to 3e-7 of the larger of 1 and its magnitude; about -38 for 0
// and subnormal ones.
AFNEXT_INLINE F32 log10(F32 x) {
  // x = m * 2**e with m in [sqrt(1/2), sqrt(2)). Minimax polynomial of log10(1 + t), to 1e-7.
  constexpr int32_t root_half = 0x3f3504f3;
  const I32 offset = bit_cast<I32>(x) - root_half;
  const F32 e = __builtin_convertvector(offset >> 23, F32);
  const F32 t = bit_cast<F32>((offset & 0x7fffff) + root_half) - 1.0f;
  F32 p = fma(broadcast(0.051366102f), t, broadcast(-0.0820902511f));
  p = fma(p, t, broadcast(0.0894849524f));
  p = fma(p, t, broadcast(-0.108058281f));
  p = fma(p, t, broadcast(0.144634381f));
  p = fma(p, t, broadcast(-0.217155769f));
  p = fma(p, t, broadcast(0.434295893f));
  return fma(p, t, e * 0.301029996f);
}

}  // namespace afnext::cpu::AFNEXT_ISA
