// The fastest multiply-add that a level has for a dtype, one instruction (or few) at a time.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/simd/dot_bf16.h"
#include "cpu/simd/dot_integers.h"

namespace afnext::cpu::AFNEXT_ISA {

// MultiplyAdd<T>: registers of operands and sums, the products that one call adds, the call.
template <typename T>
struct MultiplyAdd;

template <>
struct MultiplyAdd<float> {
  using Operand = F32;
  using Sum = F32;
  static constexpr int kProducts = kLanes;
  AFNEXT_INLINE Operand operand(const float* p) { return load(p); }
  AFNEXT_INLINE Sum multiply_add(Operand a, Operand b, Sum sum) { return fma(a, b, sum); }
};

template <>
struct MultiplyAdd<bf16> {
  using Operand = F32;  // pairs
  using Sum = F32;
  static constexpr int kProducts = 2 * kLanes;
  AFNEXT_INLINE Operand operand(const float* p) { return load(p); }
  AFNEXT_INLINE Sum multiply_add(Operand a, Operand b, Sum sum) { return dot_pairs(a, b, sum); }
};

// Bytes of the float32 operands serve as well as any.
#if defined(__AVX2__)
template <>
struct MultiplyAdd<int8_t> {
  using Operand = I32;  // four bytes a lane, unsigned in the first operand
  using Sum = I32;
  static constexpr int kProducts = 4 * kLanes;
  AFNEXT_INLINE Operand operand(const float* p) { return bit_cast<I32>(load(p)); }
  AFNEXT_INLINE Sum multiply_add(Operand a, Operand b, Sum sum) {
#if defined(__AVX512VNNI__)
    return dot_bytes(a, b, sum);
#else
    const __m256i pairs = _mm256_maddubs_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b));
    return sum + bit_cast<I32>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
};
#else
// Without instructions for bytes they are widened: float32's rate.
template <>
struct MultiplyAdd<int8_t> : MultiplyAdd<float> {};
#endif

}  // namespace afnext::cpu::AFNEXT_ISA
