// The formats of matrix instructions' operands.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "emulation/warp.h"

namespace emulation {

constexpr int bytes_of(Element element) {
  return element == Element::s8 || element == Element::e4m3 ? 1 : 2;
}

inline float from_bf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

inline float from_f16(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::bit_cast<float>((exponent + 112) << 23 | fraction << 13);
  return sign != 0 ? -magnitude : magnitude;
}

// Four bits of exponent, three of fraction; no infinities, and NaN is all ones.
inline float from_e4m3(uint32_t bits) {
  const uint32_t exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                    : std::ldexp(static_cast<float>(8 + fraction), static_cast<int>(exponent) - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

// Element `i` of a register.
inline float number(Element element, uint32_t bits, int i) {
  switch (element) {
    case Element::bf16:
      return from_bf16(bits >> (16 * i) & 0xffff);
    case Element::f16:
      return from_f16(bits >> (16 * i) & 0xffff);
    case Element::s8:
      return static_cast<int8_t>(bits >> (8 * i));
    case Element::e4m3:
      return from_e4m3(bits >> (8 * i) & 0xff);
  }
  return 0;
}

}  // namespace emulation
