// Arithmetic on two 16-bit elements of one register, and on its bits.
#pragma once

#include "cuda/arch/numbers.h"

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

// One lop3 each, which the compiler does not make of two constants.
AFNEXT_DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
AFNEXT_DEVICE uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// a * b + c, rounded once; subnormals are kept.
AFNEXT_DEVICE uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c, bf16) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
AFNEXT_DEVICE uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c, f16) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

#else

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) { return (a & b) ^ c; }
// Rounded to float32 on the way, which is exact for what a product and a sum of 16 bits need here.
template <typename T>
uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c, T type) {
  const float2 x = unpack(a, type), y = unpack(b, type), z = unpack(c, type);
  return pack(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y), type);
}

#endif

}  // namespace afnext::cuda::arch
