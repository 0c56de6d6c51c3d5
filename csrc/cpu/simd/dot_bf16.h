// The instruction that multiplies pairs of bf16, of levels from avx512_bf16 on.
#pragma once

#include <immintrin.h>

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// sum + the two products of each lane's pairs; subnormal numbers count as zero.
AFNEXT_INLINE F32 dot_bf16(F32 a, F32 b, F32 sum) {
  return bit_cast<F32>(
      _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
}

}  // namespace afnext::cpu::AFNEXT_ISA
