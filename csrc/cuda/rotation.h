// Phases of a rotation in float32.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda {

struct SinCos {
  float sin, cos;
};

// Of time * inv_freq, within 1e-6 of float64 up to six million radians, NaN for what is not finite.
//
// The product and its rounding error, less the nearest multiple of pi / 2 in three parts. At large
// phases the error is large enough to leave the polynomials' interval, so what is left is folded
// once more. The polynomials are those of Cephes (sinf, cosf).
AFNEXT_DEVICE SinCos sincos_of(float time, float inv_freq) {
  constexpr float kTwoOverPi = 0.636619772f;
  constexpr float kHalfPi[] = {0x1.921fb6p+0f, -0x1.777a5cp-25f, -0x1.ee59dap-50f};
  const float phase = time * inv_freq, lost = fmaf(time, inv_freq, -phase);
  float turns = rintf(phase * kTwoOverPi);
  float r = fmaf(turns, -kHalfPi[0], phase);
  r = fmaf(turns, -kHalfPi[1], r);
  r = fmaf(turns, -kHalfPi[2], r) + lost;
  const float again = rintf(r * kTwoOverPi);
  r = fmaf(again, -kHalfPi[0], r);
  turns += again;
  const float r2 = r * r;
  float s = fmaf(-1.9515295891e-4f, r2, 8.3321608736e-3f);
  s = fmaf(s, r2, -1.6666654611e-1f);
  s = fmaf(s * r2, r, r);
  float c = fmaf(2.443315711809948e-5f, r2, -1.388731625493765e-3f);
  c = fmaf(c, r2, 4.166664568298827e-2f);
  c = fmaf(c, r2, -0.5f);
  c = fmaf(c, r2, 1.0f);
  constexpr float kMost = 8388608.0f;  // beyond it a turn is not to be told from the next
  const int quadrant = fabsf(turns) < kMost ? static_cast<int>(turns) & 3 : 0;
  const float sine = quadrant & 1 ? c : s, cosine = quadrant & 1 ? s : c;
  return {quadrant & 2 ? -sine : sine, (quadrant + 1) & 2 ? -cosine : cosine};
}

// Channels of a pair that turns together; those past 2 * half do not turn and go in twos.
struct RotatedPair {
  int first, second;
  AFNEXT_DEVICE RotatedPair(int pair, int half, bool interleaved) {
    const bool apart = pair < half && !interleaved;
    first = apart ? pair : 2 * pair;
    second = apart ? pair + half : 2 * pair + 1;
  }
};
AFNEXT_DEVICE void turn(const SinCos& by, float* a, float* b) {
  const float x = *a, y = *b;
  *a = x * by.cos - y * by.sin;
  *b = y * by.cos + x * by.sin;
}

}  // namespace afnext::cuda
