// The Gaussian error linear unit.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))), to 2 units in the last place and 1e-8.
AFNEXT_INLINE F32 gelu(F32 x) {
  // log(2 * Phi(-a)) = a * p(a) on [0, 6], a minimax fit of ours (to 5e-8); past 6, Phi(-a) < 1e-9.
  const F32 a = max(x, -x);
  F32 p = fma(broadcast(1.4427527e-9f), a, broadcast(-5.5795205e-8f));
  p = fma(p, a, broadcast(9.553951e-7f));
  p = fma(p, a, broadcast(-9.447532e-6f));
  p = fma(p, a, broadcast(5.7780075e-5f));
  p = fma(p, a, broadcast(-1.9774295e-4f));
  p = fma(p, a, broadcast(-9.640800e-6f));
  p = fma(p, a, broadcast(4.8426404e-3f));
  p = fma(p, a, broadcast(-3.6375884e-2f));
  p = fma(p, a, broadcast(-3.1829718e-1f));
  p = fma(p, a, broadcast(-7.9788589e-1f));
  const F32 tail = 0.5f * exp_nonpositive(select(a > 6.0f, broadcast(-100.0f), p * a));
  return x * select(x < 0.0f, tail, 1.0f - tail);
}

}  // namespace afnext::cpu::AFNEXT_ISA
