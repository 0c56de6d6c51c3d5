// Sums of products of float32 or bfloat16 elements, read as they lie in memory.
//
// A register of raw elements holds kLanes floats, or kLanes pairs of bf16: whatever the type, its
// lanes are 32-bit words, so that one loop serves both.
#pragma once

#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {

// Elements of T in a register.
template <typename T>
constexpr int kPerRegister = kLanes * 4 / static_cast<int>(sizeof(T));

template <typename T>
AFNEXT_INLINE F32 load_raw(const T* p) {
  F32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// The first n elements; the rest is zero.
template <typename T>
AFNEXT_INLINE F32 load_raw_n(const T* p, int n) {
  T buffer[kPerRegister<T>] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load_raw(buffer);
}
// The even and the odd elements of a register of bf16 pairs.
AFNEXT_INLINE F32 low_of_pairs(F32 v) { return bit_cast<F32>(bit_cast<U32>(v) << 16); }
AFNEXT_INLINE F32 high_of_pairs(F32 v) { return bit_cast<F32>(bit_cast<U32>(v) & 0xffff0000u); }

// sum + a * b, lane by lane; a lane of bf16 adds its two products. (The instruction that multiplies
// pairs of bf16 runs at half the rate of fma on the Intel cores that have it: this is faster.)
template <typename T>
AFNEXT_INLINE F32 dot(F32 a, F32 b, F32 sum) {
  if constexpr (sizeof(T) == 4) {
    return fma(a, b, sum);
  } else {
    const F32 low = fma(low_of_pairs(a), low_of_pairs(b), sum);
    return fma(high_of_pairs(a), high_of_pairs(b), low);
  }
}

// Lane i becomes the sum of the lanes of v[i]; n <= kLanes is a power of two, and lanes past n
// repeat. Pairs of vectors are folded together: cheaper than n sums.
template <int n>
AFNEXT_INLINE F32 sum_each(F32 (&v)[n]) {
  static_assert(n <= kLanes && (n & (n - 1)) == 0);
  for (int count = n; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) {
      const F32 a = v[2 * i], b = v[2 * i + 1];
      v[i] = evens(a, b) + odds(a, b);
    }
  }
  for (int count = n; count < kLanes; count *= 2) v[0] = evens(v[0], v[0]) + odds(v[0], v[0]);
  return v[0];
}

}  // namespace afnext::cpu::AFNEXT_ISA
