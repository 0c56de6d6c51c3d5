// Turns the channels of one head: what rotate, attention and paged_append share.
#pragma once

#include "cpu/simd/shuffle.h"
#include "cpu/simd/sincos.h"

namespace afnext::cpu::AFNEXT_ISA {

// (a, b) -> (a cos - b sin, b cos + a sin) over the first 2 * half channels of x, in float32.
// Pairs are (i, i + half), or (2i, 2i + 1) when interleaved. cos and sin are float32 [half] (as
// sincos_row gives them; a negated sin turns back). Channels past 2 * half are the caller's.
// x and out are float or bf16, each its own; out may be x itself.
template <typename In, typename Out>
AFNEXT_INLINE void rotate_row(const In* x, const float* cos, const float* sin, int64_t half,
                              bool interleaved, Out* out) {
  const int64_t whole = half - half % kLanes;
  if (interleaved) {
    for (int64_t i = 0; i < whole; i += kLanes) {
      const F32 low = load(x + 2 * i), high = load(x + 2 * i + kLanes);
      const F32 a = evens(low, high), b = odds(low, high), c = load(cos + i), s = load(sin + i);
      const F32 u = a * c - b * s, v = b * c + a * s;
      store(out + 2 * i, zip_low(u, v));
      store(out + 2 * i + kLanes, zip_high(u, v));
    }
  } else {
    for (int64_t i = 0; i < whole; i += kLanes) {
      const F32 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
      store(out + i, a * c - b * s);
      store(out + half + i, b * c + a * s);
    }
  }
  const int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
  for (int64_t i = whole; i < half; ++i) {
    const float a = to_float(x[step * i]), b = to_float(x[step * i + apart]);
    from_float(out + step * i, a * cos[i] - b * sin[i]);
    from_float(out + step * i + apart, b * cos[i] + a * sin[i]);
  }
}

}  // namespace afnext::cpu::AFNEXT_ISA
