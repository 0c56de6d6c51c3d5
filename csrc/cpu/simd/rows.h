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

// `count` int8 elements times their scale.
template <typename T>
AFNEXT_INLINE void scale_row(const int8_t* row, float scale, int64_t count, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(row + i) * scale);
  for (; i < count; ++i) from_float(out + i, static_cast<float>(row[i]) * scale);
}

// x as int8 and the scale that gives it back, symmetric: the largest magnitude becomes 127. A NaN
// or an infinity makes all of the row NaN.
AFNEXT_INLINE float quantize_row(const float* x, int64_t count, int8_t* out) {
  float peak = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float size = __builtin_fabsf(x[i]);
    peak = size > peak || size != size ? size : peak;
  }
  const float scale = peak / 127.0f, inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float whole = __builtin_rintf(x[i] * inverse);
    out[i] = static_cast<int8_t>(whole >= -127.0f && whole <= 127.0f ? whole : 0.0f);
  }
  return scale;
}

}  // namespace afnext::cpu::AFNEXT_ISA
