// Sums of products of small integers, four bytes or two 16-bit words to a lane.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

AFNEXT_INLINE I32 load_words(const void* p) {
  I32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AFNEXT_INLINE I32 broadcast_word(int32_t x) { return x - I32{}; }

#if defined(__AVX512VNNI__)
constexpr bool kHasByteProducts = true;
// sum + the products of a lane's four bytes, `a` unsigned and `b` signed.
AFNEXT_INLINE I32 dot_bytes(I32 a, I32 b, I32 sum) {
  return bit_cast<I32>(
      _mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
}
#elif defined(__AVXVNNI__)
constexpr bool kHasByteProducts = true;
AFNEXT_INLINE I32 dot_bytes(I32 a, I32 b, I32 sum) {
  return bit_cast<I32>(
      _mm256_dpbusd_avx_epi32(bit_cast<__m256i>(sum), bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
}
#else
constexpr bool kHasByteProducts = false;
AFNEXT_INLINE I32 dot_bytes(I32 a, I32 b, I32 sum) {
  for (int bit = 0; bit < 32; bit += 8) sum += ((a >> bit) & 255) * (b << (24 - bit) >> 24);
  return sum;
}
#endif

// dot_bytes for one quad in all lanes of b, read where it is multiplied (as dot_broadcast of
// dot_bf16.h).
AFNEXT_INLINE I32 dot_bytes_broadcast(I32 a, const float* quad, I32 sum) {
#if defined(__AVX512VNNI__)
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*quad));
  return sum;
#else
  return dot_bytes(a, broadcast_word(bit_cast<int32_t>(*quad)), sum);
#endif
}

// sum + the products of a lane's two signed 16-bit words.
AFNEXT_INLINE I32 dot_pairs(I32 a, I32 b, I32 sum) {
#if defined(__AVX512BW__)
  return sum + bit_cast<I32>(_mm512_madd_epi16(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return sum + bit_cast<I32>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return sum + bit_cast<I32>(_mm_madd_epi16(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

}  // namespace afnext::cpu::AFNEXT_ISA
