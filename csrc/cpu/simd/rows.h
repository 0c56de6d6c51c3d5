// Whole rows in and out of float32 working memory.
#pragma once

#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {

// `count` elements as float32; what fills the last vector of `out` is zero.
template <typename T>
AFNEXT_INLINE void load_row(const T* row, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(row + i));
  if (i < count) store(out + i, load_n(row + i, static_cast<int>(count - i)));
}

// And back; `x` is readable up to its last vector.
template <typename T>
AFNEXT_INLINE void store_row(T* row, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(row + i, load(x + i));
  if (i < count) store_n(row + i, load(x + i), static_cast<int>(count - i));
}

}  // namespace afnext::cpu::AFNEXT_ISA
