// 8-bit elements in registers: what int8 and e4m3 hold, bf16 and float16 hold too.
#pragma once

#include "cuda/arch/numbers.h"

namespace afnext::cuda::arch {

// Bytes of (low, high) by number, 0 to 7, a nibble of `selector` each.
AFNEXT_DEVICE uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(__CUDACC__)
  return __byte_perm(low, high, selector);
#else
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return out;
#endif
}

// Elements i and j of four. An int8 is put into the fraction of 2**23: no conversion unit.
template <int i, int j>
AFNEXT_DEVICE float2 pick(uint32_t four, int8_t) {
  constexpr uint32_t kPower = 0x4b000000;         // 2**23
  constexpr float kOffset = 8388608.0f + 128.0f;  // and what turns int8 into uint8
  const uint32_t biased = four ^ 0x80808080;
  return {bits_float(byte_permute(biased, kPower, 0x7440 | i)) - kOffset,
          bits_float(byte_permute(biased, kPower, 0x7440 | j)) - kOffset};
}
template <int i, int j>
AFNEXT_DEVICE float2 pick(uint32_t four, e4m3) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
  uint32_t both;
  const auto two = static_cast<uint16_t>(byte_permute(four, 0, j << 4 | i));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(both) : "h"(two));
  return unpack(both, f16{});
#else
  return {to_float(e4m3{static_cast<uint8_t>(four >> 8 * i)}),
          to_float(e4m3{static_cast<uint8_t>(four >> 8 * j)})};
#endif
}

AFNEXT_DEVICE float to_float(int8_t x) { return static_cast<float>(x); }

}  // namespace afnext::cuda::arch
