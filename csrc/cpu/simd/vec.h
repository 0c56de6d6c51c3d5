// Vectors of float32 in the compiler's own vector types: one source, each instruction set's code.
//
// Everything lives in the namespace of the level that is being compiled (AFNEXT_ISA) and is always
// inlined, so that the linker can never hand the code of one level to another.
#pragma once

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#if !defined(AFNEXT_ISA) || !defined(AFNEXT_LANES)
#error "compile files of csrc/cpu through CMake's afnext_cpu_kernel()"
#endif

#define AFNEXT_INLINE static inline __attribute__((always_inline))
#define AFNEXT_INLINE_METHOD inline __attribute__((always_inline))

namespace afnext::cpu::AFNEXT_ISA {

constexpr int kLanes = AFNEXT_LANES;  // float32 lanes of a register: 4, 8 or 16

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef double F64 __attribute__((vector_size(kLanes * 8)));

struct bf16 {
  uint16_t bits;
};

AFNEXT_INLINE F32 broadcast(float x) { return x - F32{}; }

// Keeps a loaded value in its register: where it is used twice the compiler may rather load it
// twice, which costs when loads are what a loop waits for.
AFNEXT_INLINE F32 in_register(F32 v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

template <typename To, typename From>
AFNEXT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// --- loads and stores
// -----------------------------------------------------------------------------

AFNEXT_INLINE F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
AFNEXT_INLINE void store(float* p, F32 v) { std::memcpy(p, &v, sizeof(v)); }

AFNEXT_INLINE F32 widen(U16 bits) {
  return bit_cast<F32>(__builtin_convertvector(bits, U32) << 16);
}
// To nearest, ties to even; NaN stays NaN.
AFNEXT_INLINE U16 narrow(F32 v) {
  const U32 bits = bit_cast<U32>(v);
  const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const U32 quiet = bits | 0x400000u;
  const U32 is_nan = bit_cast<U32>(v != v);
  return __builtin_convertvector(((is_nan & quiet) | (~is_nan & rounded)) >> 16, U16);
}

AFNEXT_INLINE F32 load(const bf16* p) {
  U16 v;
  std::memcpy(&v, p, sizeof(v));
  return widen(v);
}
AFNEXT_INLINE void store(bf16* p, F32 v) {
  const U16 bits = narrow(v);
  std::memcpy(p, &bits, sizeof(bits));
}

AFNEXT_INLINE F32 load(const int8_t* p) {
  typedef int8_t I8 __attribute__((vector_size(kLanes)));
  I8 v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(__builtin_convertvector(v, I32), F32);
}

AFNEXT_INLINE float to_float(float x) { return x; }
AFNEXT_INLINE float to_float(bf16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
AFNEXT_INLINE void from_float(float* p, float x) { *p = x; }
AFNEXT_INLINE void from_float(bf16* p, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  p->bits = static_cast<uint16_t>(rounded >> 16);
}

// Copies n < 2 * half elements in pieces of known sizes, which take no call that would spill the
// registers of the loop around it.
template <int half, typename T>
AFNEXT_INLINE void copy_n(T* to, const T* from, int n) {
  if constexpr (half > 0) {
    if (n & half) std::memcpy(to, from, half * sizeof(T));
    const int done = n & half;
    copy_n<half / 2>(to + done, from + done, n);
  }
}

// The first n <= kLanes elements; the rest reads as zero.
template <typename T>
AFNEXT_INLINE F32 load_n(const T* p, int n) {
  T buffer[kLanes] = {};
  copy_n<kLanes>(buffer, p, n);
  return load(buffer);
}
template <typename T>
AFNEXT_INLINE void store_n(T* p, F32 v, int n) {
  T buffer[kLanes];
  store(buffer, v);
  copy_n<kLanes>(p, buffer, n);
}

// --- arithmetic
// -----------------------------------------------------------------------------------

AFNEXT_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }  // -ffp-contract=fast fuses it
AFNEXT_INLINE F32 select(I32 mask, F32 a, F32 b) { return mask ? a : b; }
AFNEXT_INLINE F32 max(F32 a, F32 b) { return a > b ? a : b; }
AFNEXT_INLINE F32 min(F32 a, F32 b) { return a < b ? a : b; }

AFNEXT_INLINE float sum(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
AFNEXT_INLINE float largest(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
}

// e**x to 2 units in the last place; 0 below -87.33 (and at -inf), inf above 88.72.
AFNEXT_INLINE F32 exp(F32 x) {
  const F32 clamped = min(max(x, broadcast(-87.33654f)), broadcast(88.72283f));
  const F32 shifter = broadcast(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer
  const F32 n = fma(clamped, broadcast(1.44269504f), shifter) - shifter;
  // ln 2 in two parts keeps the remainder exact; polynomial of Cephes' expf (S. Moshier).
  const F32 r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), clamped));
  F32 p = fma(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // 2**n in two factors, so that n = 128 does not overflow on the way.
  const I32 whole = __builtin_convertvector(n, I32);
  const I32 half = whole >> 1;
  const F32 a = bit_cast<F32>((half + 127) << 23), b = bit_cast<F32>((whole - half + 127) << 23);
  const F32 value = p * a * b;
  const F32 low = select(x < -87.33654f, F32{}, value);
  const F32 high = select(x > 88.72283f, broadcast(__builtin_inff()), low);
  return select(x != x, x, high);
}

// e**x for x <= 0, half the work of exp: to 2 units in the last place, 0 below -87.33 (and at
// -inf), NaN stays. Good for small positive x too, up to 80.
AFNEXT_INLINE F32 exp_nonpositive(F32 x) {
  const F32 shifter = broadcast(12582912.0f);  // as in exp; its low bits then hold n
  const F32 shifted = fma(x, broadcast(1.44269504f), shifter);
  const F32 n = shifted - shifter;
  const F32 r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  F32 p = fma(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const F32 power = bit_cast<F32>((bit_cast<I32>(shifted) + 127) << 23);
  return select(x < -87.33654f, F32{}, p * power);
}

// 2**x for x <= 0 within 5e-6 of its value, cheaper than exp_nonpositive: for weights that become
// bf16. 0 at -inf and far below -126, NaN stays. Polynomials have the least largest relative error.
AFNEXT_INLINE F32 exp2_coarse(F32 x) {
#if defined(__AVX512DQ__)
  const F32 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x), and 0 of infinity
  F32 p = fma(broadcast(0.0135341681f), r, broadcast(0.0520114617f));
  p = fma(p, r, broadcast(0.241442755f));
  p = fma(p, r, broadcast(0.693003836f));
  p = fma(p, r, broadcast(1.0000025934f));
  return _mm512_scalef_ps(p, x);  // p * 2**floor(x)
#else
  const F32 shifted = x + 12582912.0f;  // as in exp; its low bits then hold n
  const F32 r = x - (shifted - 12582912.0f);
  F32 p = fma(broadcast(0.00957010128f), r, broadcast(0.0559178591f));
  p = fma(p, r, broadcast(0.240247443f));
  p = fma(p, r, broadcast(0.693121791f));
  p = fma(p, r, broadcast(0.999999285f));
  const F32 value = bit_cast<F32>(bit_cast<I32>(p) + (bit_cast<I32>(shifted) << 23));
  return select(x < -126.0f, F32{}, value);
#endif
}

}  // namespace afnext::cpu::AFNEXT_ISA
