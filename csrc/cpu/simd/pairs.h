// Products of bf16 elements two at a time: a lane of 32 bits holds a pair, its products are summed
// in float32.
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "cpu/simd/dot_bf16.h"
#include "cpu/simd/product.h"

namespace afnext::cpu::AFNEXT_ISA {

// (low, high) rounded to bf16, lane by lane.
AFNEXT_INLINE F32 round_pairs(F32 low, F32 high) {
#if defined(__AVX512BF16__)
  typedef uint16_t Words __attribute__((vector_size(64)));
  const Words both = bit_cast<Words>(_mm512_cvtne2ps_pbh(high, low));
  return bit_cast<F32>(__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                               6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                               13, 29, 14, 30, 15, 31));
#else
  return bit_cast<F32>(__builtin_convertvector(narrow(low), U32) |
                       __builtin_convertvector(narrow(high), U32) << 16);
#endif
}

// Pairs (low[i], high[i]) of two rows of kLanes elements.
AFNEXT_INLINE F32 zip_pairs(const bf16* low, const bf16* high) {
  U16 a, b;
  std::memcpy(&a, low, sizeof(a));
  std::memcpy(&b, high, sizeof(b));
  return bit_cast<F32>(__builtin_convertvector(a, U32) | __builtin_convertvector(b, U32) << 16);
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
