// Products of bf16 elements two at a time: a lane of 32 bits holds a pair, its products are summed
// in float32.
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "cpu/simd/dot_bf16.h"
#include "cpu/simd/product.h"

namespace afnext::cpu::AFNEXT_ISA {

typedef uint16_t Words __attribute__((vector_size(kLanes * 4)));  // a register of bf16

namespace detail {

template <int... I>
AFNEXT_INLINE Words zip_halves(Words v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I / 2 + I % 2 * kLanes)...);
}
template <int first, int... I>
AFNEXT_INLINE U16 half(Words v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (first + I)...);
}

}  // namespace detail

// Both rounded to bf16: the lanes of `low`, then those of `high`.
AFNEXT_INLINE Words round_halves(F32 low, F32 high) {
#if defined(__AVX512BF16__)
  return bit_cast<Words>(_mm512_cvtne2ps_pbh(high, low));
#else
  const U16 halves[] = {narrow(low), narrow(high)};
  Words words;
  std::memcpy(&words, halves, sizeof(words));
  return words;
#endif
}

// A register of pairs out of its two halves.
AFNEXT_INLINE F32 zip_halves(Words v) {
  return bit_cast<F32>(detail::zip_halves(v, std::make_integer_sequence<int, 2 * kLanes>()));
}

// The halves apart.
AFNEXT_INLINE void store_halves(Words v, bf16* low, bf16* high) {
  const U16 halves[] = {detail::half<0>(v, LaneIndices()), detail::half<kLanes>(v, LaneIndices())};
  std::memcpy(low, &halves[0], sizeof(U16));
  std::memcpy(high, &halves[1], sizeof(U16));
}

// (low, high) rounded to bf16, lane by lane.
AFNEXT_INLINE F32 round_pairs(F32 low, F32 high) { return zip_halves(round_halves(low, high)); }

// Pairs (low[i], high[i]) of two rows of kLanes elements.
AFNEXT_INLINE F32 zip_pairs(const bf16* low, const bf16* high) {
  U16 a, b;
  std::memcpy(&a, low, sizeof(a));
  std::memcpy(&b, high, sizeof(b));
  return bit_cast<F32>(__builtin_convertvector(a, U32) | __builtin_convertvector(b, U32) << 16);
}

// The same of whole rows, a float a pair; without `high` of one row and zeros.
AFNEXT_INLINE void zip_rows(const bf16* low, const bf16* high, int64_t count, float* pairs) {
  int64_t i = 0;
  if (high != nullptr) {
    for (; i + kLanes <= count; i += kLanes) store(pairs + i, zip_pairs(low + i, high + i));
  }
  for (; i < count; ++i) {
    const uint32_t above = high != nullptr ? high[i].bits : 0u;
    pairs[i] = bit_cast<float>(above << 16 | low[i].bits);
  }
}

// A matrix of pairs for product(), whose depth then counts pairs: pair k of row m lies at
// data[m * stride + 2 * k] ..
struct PairsByRow {
  const bf16* data;
  int64_t stride;
  AFNEXT_INLINE_METHOD F32 at(int64_t m, int64_t k) const {
    float pair;
    std::memcpy(&pair, data + m * stride + 2 * k, sizeof(pair));
    return broadcast(pair);
  }
  AFNEXT_INLINE_METHOD static F32 add(F32 a, F32 b, F32 sum) { return dot_pairs(a, b, sum); }
};
// .. or at data[k * stride + m].
struct PairsByColumn {
  const float* data;
  int64_t stride;
  AFNEXT_INLINE_METHOD F32 at(int64_t m, int64_t k) const {
    return broadcast(data[k * stride + m]);
  }
  AFNEXT_INLINE_METHOD static F32 add(F32 a, F32 b, F32 sum) { return dot_pairs(a, b, sum); }
};

}  // namespace afnext::cpu::AFNEXT_ISA
