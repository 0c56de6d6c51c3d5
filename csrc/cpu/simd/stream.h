// Stores of whole cache lines that go past the caches.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

constexpr int64_t kLineBytes = 64;

#if defined(__AVX512F__)
constexpr bool kHasStreams = true;

AFNEXT_INLINE void stream(float* line, const F32 (&v)[2]) {
  for (int i = 0; i < 2; ++i) _mm512_stream_ps(line + i * kLanes, v[i]);
}
AFNEXT_INLINE void stream(bf16* line, const F32 (&v)[2]) {
  typedef uint16_t U16x2 __attribute__((vector_size(4 * kLanes)));
  const U16x2 bits = __builtin_shufflevector(narrow(v[0]), narrow(v[1]), 0, 1, 2, 3, 4, 5, 6, 7, 8,
                                             9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
                                             23, 24, 25, 26, 27, 28, 29, 30, 31);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(line), bit_cast<__m512i>(bits));
}
// Before another thread is told of them.
AFNEXT_INLINE void finish_streams() { _mm_sfence(); }
#else
constexpr bool kHasStreams = false;

template <typename T, int n>
AFNEXT_INLINE void stream(T* line, const F32 (&v)[n]) {
  for (int i = 0; i < n; ++i) store(line + i * kLanes, v[i]);
}
AFNEXT_INLINE void finish_streams() {}
#endif

}  // namespace afnext::cpu::AFNEXT_ISA
