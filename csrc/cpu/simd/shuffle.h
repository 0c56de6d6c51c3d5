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

// Within blocks of 4 lanes: units of `step` lanes of a and b in turn, out of the lower or the upper
// (second = 1) half of the block.
template <int step, int second, int... I>
AFNEXT_INLINE F32 unpack(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(
      a, b, (I / 4 * 4 + second * 2 + I % 4 / (3 - step) % 2 + I / step % 2 * kLanes)...);
}
// Blocks of 4 lanes: the even ones of a, then of b, or the odd ones (second = 1).
template <int second, int... I>
AFNEXT_INLINE F32 blocks(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I / 4 * 2 + second) * 4 + I % 4)...);
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

// Rows become columns: squares of 4 x 4 within blocks of 4 lanes, which every instruction set
// shuffles at its full rate, then the blocks change places.
AFNEXT_INLINE void transpose(F32 (&rows)[kLanes]) {
  constexpr int blocks = kLanes / 4;
  for (int i = 0; i < kLanes; i += 4) {
    const F32 a = detail::unpack<1, 0>(rows[i], rows[i + 1], LaneIndices());
    const F32 b = detail::unpack<1, 1>(rows[i], rows[i + 1], LaneIndices());
    const F32 c = detail::unpack<1, 0>(rows[i + 2], rows[i + 3], LaneIndices());
    const F32 d = detail::unpack<1, 1>(rows[i + 2], rows[i + 3], LaneIndices());
    rows[i] = detail::unpack<2, 0>(a, c, LaneIndices());
    rows[i + 1] = detail::unpack<2, 1>(a, c, LaneIndices());
    rows[i + 2] = detail::unpack<2, 0>(b, d, LaneIndices());
    rows[i + 3] = detail::unpack<2, 1>(b, d, LaneIndices());
  }
  for (int round = 1; round < blocks; round *= 2) {
    F32 mixed[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      const F32 a = rows[i / 4 * 8 + i % 4], b = rows[i / 4 * 8 + i % 4 + 4];
      mixed[i] = detail::blocks<0>(a, b, LaneIndices());
      mixed[i + kLanes / 2] = detail::blocks<1>(a, b, LaneIndices());
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

}  // namespace afnext::cpu::AFNEXT_ISA
