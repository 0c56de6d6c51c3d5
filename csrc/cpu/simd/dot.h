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
// The first n <= kPerRegister elements; the rest is zero.
template <typename T>
AFNEXT_INLINE F32 load_raw_n(const T* p, int n) {
  T buffer[kPerRegister<T>] = {};
  copy_n<kPerRegister<T>>(buffer, p, n);
  return load_raw(buffer);
}
// The even and the odd elements of a register of bf16 pairs.
AFNEXT_INLINE F32 low_of_pairs(F32 v) { return bit_cast<F32>(bit_cast<U32>(v) << 16); }
AFNEXT_INLINE F32 high_of_pairs(F32 v) { return bit_cast<F32>(bit_cast<U32>(v) & 0xffff0000u); }

// Lane i becomes what `fold` makes of the lanes of v[i]; n <= kLanes is a power of two, and lanes
// past n repeat. Pairs of vectors are folded together: cheaper than one by one.
template <int n, typename Fold>
AFNEXT_INLINE F32 fold_each(F32 (&v)[n], Fold fold) {
  static_assert(n <= kLanes && (n & (n - 1)) == 0);
  for (int count = n; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) {
      const F32 a = v[2 * i], b = v[2 * i + 1];
      v[i] = fold(evens(a, b), odds(a, b));
    }
  }
  for (int count = n; count < kLanes; count *= 2) v[0] = fold(evens(v[0], v[0]), odds(v[0], v[0]));
  return v[0];
}
template <int n>
AFNEXT_INLINE F32 sum_each(F32 (&v)[n]) {
  return fold_each(v, [](F32 a, F32 b) __attribute__((always_inline)) { return a + b; });
}
template <int n>
AFNEXT_INLINE F32 largest_of_each(F32 (&v)[n]) {
  return fold_each(v, [](F32 a, F32 b) __attribute__((always_inline)) { return max(a, b); });
}

// The sum of each of any number of vectors.
template <int n>
AFNEXT_INLINE void sum_all(const F32* vectors, float* sums) {
  // The power of two at or below n; above three quarters of the next one, that one.
  constexpr int below = n >= 16 ? 16 : n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
  constexpr int wanted = 4 * n > 6 * below ? 2 * below : below;
  constexpr int size = wanted < kLanes ? wanted : kLanes, filled = n < size ? n : size;
  F32 group[size] = {};
  for (int i = 0; i < filled; ++i) group[i] = vectors[i];
  float lanes[kLanes];
  store(lanes, sum_each(group));
  for (int i = 0; i < filled; ++i) sums[i] = lanes[i];
  if constexpr (n > filled) sum_all<n - filled>(vectors + filled, sums + filled);
}

}  // namespace afnext::cpu::AFNEXT_ISA
