// 16-bit and 8-bit floats as bits, and functions of the special function unit.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/arch/platform.h"
#if !defined(__CUDACC__)
#include "emulation/numbers.h"
#endif

namespace afnext::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Storage of an element; arithmetic is in float32.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};

namespace arch {

AFNEXT_DEVICE uint32_t float_bits(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  return std::bit_cast<uint32_t>(x);
#endif
}
AFNEXT_DEVICE float bits_float(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

// a * b rounded by itself, never a part of a fused multiply-add.
AFNEXT_DEVICE float product(float a, float b) {
#if defined(__CUDACC__)
  return __fmul_rn(a, b);
#else
  return static_cast<float>(static_cast<double>(a) * b);
#endif
}

AFNEXT_DEVICE float to_float(float x) { return x; }
AFNEXT_DEVICE float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

#if defined(__CUDACC__)

AFNEXT_DEVICE float to_float(f16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
// Through float16, which holds every e4m3.
AFNEXT_DEVICE float to_float(e4m3 x) {
#if __CUDA_ARCH__ >= 890
  uint32_t both;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(both) : "h"(static_cast<uint16_t>(x.bits)));
  return to_float(f16{static_cast<uint16_t>(both)});
#else
  if ((x.bits & 0x7f) == 0x7f) return __uint_as_float(0x7fffffff);
  // Exponent and fraction where float16 has them, worth 2**8 too little.
  const auto bits = static_cast<uint16_t>((x.bits & 0x80) << 8 | (x.bits & 0x7f) << 7);
  return to_float(f16{bits}) * 256.0f;
#endif
}
// Two floats rounded to nearest even, the first in the low half.
AFNEXT_DEVICE uint32_t pack(float low, float high, bf16) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
AFNEXT_DEVICE uint32_t pack(float low, float high, f16) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
// To nearest even, beyond 448 to 448.
AFNEXT_DEVICE e4m3 to_e4m3(float x) {
#if __CUDA_ARCH__ >= 890
  uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(0.0f), "f"(x));
  return {static_cast<uint8_t>(both)};
#else
  const uint32_t sign = float_bits(x) >> 24 & 0x80;
  if (x != x) return {0x7f};
  const float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0x1p-6f) {  // subnormal: a multiple of 2**-9
    return {static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.0f)))};
  }
  uint32_t bits = float_bits(magnitude);
  bits += 0x7ffff + (bits >> 20 & 1);
  const uint32_t exponent = (bits >> 23) - 120;
  return {static_cast<uint8_t>(sign | exponent << 3 | (bits >> 20 & 7))};
#endif
}
// 2**x within 2 ulp; 0 for -infinity.
AFNEXT_DEVICE float exp2_approx(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
// log2(x) within 1e-7 absolute near 1, else 1 ulp.
AFNEXT_DEVICE float log2_approx(float x) {
  float value;
  asm("lg2.approx.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
// The same in fewer instructions, of subnormals -infinity.
AFNEXT_DEVICE float log2_approx_ftz(float x) {
  float value;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
AFNEXT_DEVICE float reciprocal_approx(float x) {
  float value;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}
AFNEXT_DEVICE float rsqrt_approx(float x) {
  float value;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

#else

inline float to_float(f16 x) { return emulation::from_f16(x.bits); }
inline float to_float(e4m3 x) { return emulation::from_e4m3(x.bits); }
inline uint32_t round_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (x != x) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t round_f16(float x) {
  const auto half = static_cast<_Float16>(x);
  return std::bit_cast<uint16_t>(half);
}
inline uint32_t pack(float low, float high, bf16) {
  return round_bf16(low) | round_bf16(high) << 16;
}
inline uint32_t pack(float low, float high, f16) { return round_f16(low) | round_f16(high) << 16; }
inline e4m3 to_e4m3(float x) {
  if (x != x) return {0x7f};
  const uint32_t sign = std::signbit(x) ? 0x80 : 0;
  const float magnitude = std::fmin(std::fabs(x), 448.0f);
  if (magnitude < 0x1p-6f) {
    return {static_cast<uint8_t>(sign | static_cast<uint32_t>(std::rint(magnitude * 512.0f)))};
  }
  auto bits = std::bit_cast<uint32_t>(magnitude);
  bits += 0x7ffff + (bits >> 20 & 1);
  return {static_cast<uint8_t>(sign | ((bits >> 23) - 120) << 3 | (bits >> 20 & 7))};
}
inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float log2_approx_ftz(float x) { return std::log2(x < 0x1p-126f ? 0.0f : x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }

#endif

AFNEXT_DEVICE void from_float(float x, float* out) { *out = x; }
AFNEXT_DEVICE void from_float(float x, bf16* out) {
  out->bits = static_cast<uint16_t>(pack(x, 0.0f, bf16{}));
}
AFNEXT_DEVICE void from_float(float x, f16* out) {
  out->bits = static_cast<uint16_t>(pack(x, 0.0f, f16{}));
}
// A float rounded to T.
template <typename T>
AFNEXT_DEVICE T rounded(float x) {
  T out;
  from_float(x, &out);
  return out;
}
// Two elements of one register.
AFNEXT_DEVICE float2 unpack(uint32_t both, bf16) {
  return {bits_float(both << 16), bits_float(both & 0xffff0000)};
}
AFNEXT_DEVICE float2 unpack(uint32_t both, f16) {
  return {to_float(f16{static_cast<uint16_t>(both)}),
          to_float(f16{static_cast<uint16_t>(both >> 16)})};
}

}  // namespace arch
}  // namespace afnext::cuda
