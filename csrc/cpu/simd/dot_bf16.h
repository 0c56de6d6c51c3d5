// The instruction that multiplies pairs of bf16, of levels from avx512_bf16 on.
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "cpu/simd/dot.h"

namespace afnext::cpu::AFNEXT_ISA {

// Whether one instruction adds the products of a pair; without it float32 is faster.
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// sum + a.low * b.low + a.high * b.high; the instruction takes subnormal numbers for zero.
AFNEXT_INLINE F32 dot_pairs(F32 a, F32 b, F32 sum) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
#else
  const F32 low = fma(low_of_pairs(a), low_of_pairs(b), sum);
  return fma(high_of_pairs(a), high_of_pairs(b), low);
#endif
}

// dot_pairs for one pair in all lanes of b, read where it is multiplied: GCC loads it first, which
// costs a third more.
AFNEXT_INLINE F32 dot_broadcast(F32 a, const float* pair, F32 sum) {
#if defined(__AVX512BF16__)
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*pair));
  return sum;
#else
  return dot_pairs(a, broadcast(*pair), sum);
#endif
}

// sum + a * b, lane by lane, of registers of T as they lie in memory.
template <typename T>
AFNEXT_INLINE F32 dot(F32 a, F32 b, F32 sum) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return fma(a, b, sum);
  } else {
    return dot_pairs(a, b, sum);
  }
}

}  // namespace afnext::cpu::AFNEXT_ISA
