// Elements of two or four rows side by side in a lane, for the instructions that add the products
// of a lane. Each block of 16 bytes is zipped for itself, which is cheapest: channels change their
// order.
#pragma once

#include "cpu/simd/dot_integers.h"
#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {

namespace detail {

// Within blocks of 16 bytes: units of `size` bytes of a and b in turn, out of the lower or the
// upper (second = 1) half of the block.
template <int size, int second, int... I>
AFNEXT_INLINE I32 unpack_bytes(I32 a, I32 b, std::integer_sequence<int, I...>) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes * 4)));
  return bit_cast<I32>(
      __builtin_shufflevector(bit_cast<Bytes>(a), bit_cast<Bytes>(b),
                              (I / 16 * 16 + second * 8 + I % 16 / (2 * size) * size + I % size +
                               I / size % 2 * 4 * kLanes)...));
}

}  // namespace detail

// Pairs of 16-bit elements: those of channel 8 * l + i lie in lane 4 * l + i of `low`, those of
// channel 8 * l + 4 + i in the same lane of `high`.
AFNEXT_INLINE void zip_blocks(F32 a, F32 b, F32& low, F32& high) {
  using Indices = std::make_integer_sequence<int, 4 * kLanes>;
  const I32 first = bit_cast<I32>(a), second = bit_cast<I32>(b);
  low = bit_cast<F32>(detail::unpack_bytes<2, 0>(first, second, Indices()));
  high = bit_cast<F32>(detail::unpack_bytes<2, 1>(first, second, Indices()));
}

// Quads of bytes: those of channel 16 * l + 4 * v + i lie in lane 4 * l + i of quads[v].
AFNEXT_INLINE void zip_blocks(const I32 (&rows)[4], I32 (&quads)[4]) {
  using Indices = std::make_integer_sequence<int, 4 * kLanes>;
  const I32 a = detail::unpack_bytes<1, 0>(rows[0], rows[1], Indices());
  const I32 b = detail::unpack_bytes<1, 1>(rows[0], rows[1], Indices());
  const I32 c = detail::unpack_bytes<1, 0>(rows[2], rows[3], Indices());
  const I32 d = detail::unpack_bytes<1, 1>(rows[2], rows[3], Indices());
  quads[0] = detail::unpack_bytes<2, 0>(a, c, Indices());
  quads[1] = detail::unpack_bytes<2, 1>(a, c, Indices());
  quads[2] = detail::unpack_bytes<2, 0>(b, d, Indices());
  quads[3] = detail::unpack_bytes<2, 1>(b, d, Indices());
}

}  // namespace afnext::cpu::AFNEXT_ISA
