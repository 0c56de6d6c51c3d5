// Tensor cores of sm_80 and newer: ldmatrix, stmatrix, mma.sync.
//
// Fragments of m16n8k16 as in the PTX manual, lane = 4 * row + column pair: a[0..3] are rows r and
// r + 8 of columns 2c and 2c + 8, b[0..1] rows 2c and 2c + 8 of column r, d[0..3] columns 2c and
// 2c + 1 of rows r and r + 8.
#pragma once

#include "cuda/arch/numbers.h"
#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

#if defined(__CUDACC__)

// `count` 8 x 8 matrices of 16 bits; lane 8 i + r hands in the address of row r of matrix i.
template <int count>
AFNEXT_DEVICE void ldmatrix(uint32_t (&d)[count], SharedAddress row) {
  static_assert(count == 1 || count == 2 || count == 4);
  if constexpr (count == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(d[0])
                 : "r"(row.bytes)
                 : "memory");
  } else if constexpr (count == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(row.bytes)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row.bytes)
                 : "memory");
  }
}
template <int count>
AFNEXT_DEVICE void ldmatrix(uint32_t (&d)[count], const void* row) {
  ldmatrix(d, SharedAddress(row));
}
// The same, each matrix transposed.
template <int count>
AFNEXT_DEVICE void ldmatrix_transposed(uint32_t (&d)[count], SharedAddress row) {
  static_assert(count == 1 || count == 2 || count == 4);
  if constexpr (count == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(d[0])
                 : "r"(row.bytes)
                 : "memory");
  } else if constexpr (count == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(row.bytes)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row.bytes)
                 : "memory");
  }
}
template <int count>
AFNEXT_DEVICE void ldmatrix_transposed(uint32_t (&d)[count], const void* row) {
  ldmatrix_transposed(d, SharedAddress(row));
}

// Four matrices the other way (sm_90).
AFNEXT_DEVICE void stmatrix(void* row, const uint32_t (&d)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3])
      : "memory");
}
// d += a @ b in float32.
AFNEXT_DEVICE void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
AFNEXT_DEVICE void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// m16n8k32 of bytes, in int32.
AFNEXT_DEVICE void mma_sync(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

using emulation::Here;

template <int count>
void ldmatrix(uint32_t (&d)[count], const void* row, Here here = Here::current()) {
  emulation::ldmatrix(d, row, false, here);
}
template <int count>
void ldmatrix_transposed(uint32_t (&d)[count], const void* row, Here here = Here::current()) {
  emulation::ldmatrix(d, row, true, here);
}
inline void stmatrix(void* row, const uint32_t (&d)[4], Here here = Here::current()) {
  emulation::stmatrix(row, d, false, here);
}
template <int count>
void ldmatrix(uint32_t (&d)[count], SharedAddress row, Here here = Here::current()) {
  emulation::ldmatrix(d, row.pointer(), false, here);
}
template <int count>
void ldmatrix_transposed(uint32_t (&d)[count], SharedAddress row, Here here = Here::current()) {
  emulation::ldmatrix(d, row.pointer(), true, here);
}
inline void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16,
                     Here here = Here::current()) {
  emulation::mma_sync(emulation::Element::bf16, d, a, b, here);
}
inline void mma_sync(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16,
                     Here here = Here::current()) {
  emulation::mma_sync(emulation::Element::f16, d, a, b, here);
}
inline void mma_sync(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Here here = Here::current()) {
  emulation::mma_sync(emulation::Element::s8, d, a, b, here);
}

#endif

}  // namespace afnext::cuda::arch
