// Phases of a rotation in float32.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda {

struct SinCos {
  float sin, cos;
};

// Of time * inv_freq, within 1e-6 up to phases of a million turns: the product and its rounding
// error, less the nearest multiple of pi / 2 in three parts.
AFNEXT_DEVICE SinCos sincos_of(float time, float inv_freq) {
  const float phase = time * inv_freq, lost = fmaf(time, inv_freq, -phase);
  const float n = rintf(phase * 0.636619772f);
  float r = fmaf(n, -0x1.921fb6p+0f, phase);
  r = fmaf(n, 0x1.777a5cp-25f, r);
  r = fmaf(n, 0x1.ee59dap-50f, r) + lost;
  const float r2 = r * r;
  float s = fmaf(-1.9515295891e-4f, r2, 8.3321608736e-3f);
  s = fmaf(s, r2, -1.6666654611e-1f);
  s = fmaf(s * r2, r, r);
  float c = fmaf(2.443315711809948e-5f, r2, -1.388731625493765e-3f);
  c = fmaf(c, r2, 4.166664568298827e-2f);
  c = fmaf(c, r2, -0.5f);
  c = fmaf(c, r2, 1.0f);
  const int quadrant = static_cast<int>(n) & 3;
  const float sine = quadrant & 1 ? c : s, cosine = quadrant & 1 ? s : c;
  return {quadrant & 2 ? -sine : sine, (quadrant + 1) & 2 ? -cosine : cosine};
}

}  // namespace afnext::cuda
