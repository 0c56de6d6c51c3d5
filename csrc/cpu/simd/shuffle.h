// Moves between the lanes of float32 vectors, at any width.
#pragma once

#include <utility>

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

using LaneIndices = std::make_integer_sequence<int, kLanes>;  // names types only, no code

namespace detail {

template <int... I>
AFNEXT_INLINE F32 evens(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <int... I>
AFNEXT_INLINE F32 odds(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
template <int first, int... I>
AFNEXT_INLINE F32 zip(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (first + I / 2 + I % 2 * kLanes)...);
}

template <int step, int... I>
AFNEXT_INLINE F32 swap(F32 a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, (I ^ step)...);
}

}  // namespace detail

// a0 a2 a4 .. b0 b2 b4 ..
AFNEXT_INLINE F32 evens(F32 a, F32 b) { return detail::evens(a, b, LaneIndices()); }
// a1 a3 a5 .. b1 b3 b5 ..
AFNEXT_INLINE F32 odds(F32 a, F32 b) { return detail::odds(a, b, LaneIndices()); }
// a0 b0 a1 b1 .. of the lower halves
AFNEXT_INLINE F32 zip_low(F32 a, F32 b) { return detail::zip<0>(a, b, LaneIndices()); }
// .. and of the upper halves
AFNEXT_INLINE F32 zip_high(F32 a, F32 b) { return detail::zip<kLanes / 2>(a, b, LaneIndices()); }
// Each lane changes places with the one `step`, a power of two, away.
template <int step>
AFNEXT_INLINE F32 swap_lanes(F32 a) {
  return detail::swap<step>(a, LaneIndices());
}

// Rows become columns: log2(kLanes) rounds of a perfect shuffle.
AFNEXT_INLINE void transpose(F32 (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    F32 mixed[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = zip_low(rows[i], rows[i + kLanes / 2]);
      mixed[2 * i + 1] = zip_high(rows[i], rows[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

}  // namespace afnext::cpu::AFNEXT_ISA
